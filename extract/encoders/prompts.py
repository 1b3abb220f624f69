"""Makes prompts from templates and class names."""

from collections.abc import Sequence
from pathlib import Path

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.files import regular
from ...cache.common.text import flaw, nfc
from ..datasets.registry import SampleKind

DEFAULT_TEMPLATE = "a picture of a {}"
PLAIN_TEMPLATE = "{}"

# Published sets of templates.
TEMPLATE_SETS = ("openai7", "openai80")


def default_template(samples: SampleKind) -> str:
    """Return the template for an encoder of images or texts: a text is no picture of its class."""
    return DEFAULT_TEMPLATE if samples == "images" else PLAIN_TEMPLATE


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates without repetitions, in the same order.

    Raises:
        FedclipError: a template does not have exactly one ``{}`` for the class name, or is a text
            that a cache cannot store.
    """
    for template in templates:
        if found := flaw(template):
            raise FedclipError(f"--template {template!r}: is a text {found}; retype it")
        if template.count("{}") != 1:
            raise FedclipError(
                f"--template {template!r}: has {template.count('{}')} placeholders {{}}; use "
                "exactly one, for the class name"
            )
    return tuple(dict.fromkeys(map(nfc, templates)))


def templates_of(name: str | None) -> tuple[str, ...]:
    """Return a published set of templates; empty if `name` is None.

    `openai80` is the set that CLIP's authors chose for ImageNet. `openai7` has seven of these,
    whose ensemble is about as good according to the authors' notebook (Radford et al. 2021,
    arXiv:2103.00020; "Prompt Engineering for ImageNet" in the repository openai/CLIP).

    Raises:
        FedclipError: the set is unknown.
    """
    if name is None:
        return ()
    if name not in TEMPLATE_SETS:
        raise FedclipError(f"unknown template set {name!r}{suggest(name, TEMPLATE_SETS)}")
    from .compiler import deferred_compiler

    with deferred_compiler():
        from .openclip import PUBLISHED_TEMPLATES
    return tuple(fill("{}") for fill in PUBLISHED_TEMPLATES[name])


def prompt(template: str, class_name: str) -> str:
    """Fill a class name into a template, with spaces for underscores."""
    return template.replace("{}", class_name.replace("_", " "))


def parse_class_names(text: str | None) -> tuple[str, ...]:
    """Parse class names: ``a,b,c`` or ``@file`` with one per line; none if `text` is None.

    Raises:
        FedclipError: the list is empty, a file cannot be read or is not UTF-8, a name occurs
            twice, or a name is a text that a cache cannot store.
    """
    if text is None:
        return ()
    if text.startswith("@"):
        try:
            parts = regular(Path(text[1:])).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise FedclipError(f"--class-names {text}: is not UTF-8; save it as UTF-8") from None
        except OSError as error:
            raise FedclipError(
                f"--class-names {text}: cannot be read ({error.strerror}); pass A,B,C or @FILE"
            ) from None
    else:
        parts = text.split(",")
    names = tuple(nfc(name.strip()) for name in parts if name.strip())
    if not names:
        raise FedclipError(f"--class-names {text}: is empty; pass A,B,C or @FILE")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise FedclipError(f"--class-names {text}: has {repeated!r} twice; list each class once")
    for name in names:
        if found := flaw(name):
            raise FedclipError(f"--class-names {text}: has a class {name!r} {found}; rename it")
    return names
