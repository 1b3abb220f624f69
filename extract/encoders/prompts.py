"""Class names to prompts."""

from collections.abc import Sequence
from pathlib import Path

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.text import flaw

DEFAULT_TEMPLATE = "a picture of a {}"

# Published sets of templates, by the names of their lists in open_clip.
TEMPLATE_SETS = {"openai7": "SIMPLE_IMAGENET_TEMPLATES", "openai80": "OPENAI_IMAGENET_TEMPLATES"}


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates without repetitions, in their order.

    Raises:
        FedclipError: a template has not exactly one ``{}`` for the class name, or is no text
            that a cache can keep.
    """
    for template in templates:
        if found := flaw(template):
            raise FedclipError(f"there is a template {template!r} {found}; write it anew")
        if template.count("{}") != 1:
            raise FedclipError(
                f"template {template!r} needs exactly one {{}} where the class name goes"
            )
    return tuple(dict.fromkeys(templates))


def templates_of(name: str | None) -> tuple[str, ...]:
    """List a published set of templates; for None, none.

    `openai80` are the templates that CLIP's authors chose for ImageNet, and `openai7` the seven
    of them whose ensemble their notebook finds about as good (Radford et al. 2021,
    arXiv:2103.00020; "Prompt Engineering for ImageNet" in the repository openai/CLIP).

    Raises:
        FedclipError: the set is unknown.
    """
    if name is None:
        return ()
    if name not in TEMPLATE_SETS:
        raise FedclipError(f"unknown template set {name!r}{suggest(name, TEMPLATE_SETS)}")
    import open_clip

    return tuple(fill("{}") for fill in getattr(open_clip, TEMPLATE_SETS[name]))


def prompt(template: str, class_name: str) -> str:
    """Put a class name, its underscores made spaces, into a template."""
    return template.replace("{}", class_name.replace("_", " "))


def parse_class_names(text: str | None) -> tuple[str, ...]:
    """Read class names, ``a,b,c`` or ``@file`` with one a line; none where `text` is None.

    Raises:
        FedclipError: there is none, a file cannot be read, a name occurs twice, or is no text
            that a cache can keep.
    """
    if text is None:
        return ()
    if text.startswith("@"):
        try:
            parts = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise FedclipError(f"--class-names {text}: is no text in UTF-8") from None
    else:
        parts = text.split(",")
    names = tuple(name.strip() for name in parts if name.strip())
    if not names:
        raise FedclipError(f"--class-names {text}: names no class")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise FedclipError(f"--class-names {text}: names {repeated!r} twice")
    for name in names:
        if found := flaw(name):
            raise FedclipError(f"--class-names {text}: has a class {name!r} {found}; rename it")
    return names
