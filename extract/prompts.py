"""Class names to prompts."""

from collections.abc import Sequence
from pathlib import Path

from ..cache import FedclipError

DEFAULT_TEMPLATE = "a picture of a {}"


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates without repetitions, in their order.

    Raises:
        FedclipError: a template has not exactly one ``{}`` for the class name.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise FedclipError(
                f"template {template!r} needs exactly one {{}} where the class name goes"
            )
    return tuple(dict.fromkeys(templates))


def prompt(template: str, class_name: str) -> str:
    """Put a class name, its underscores made spaces, into a template."""
    return template.replace("{}", class_name.replace("_", " "))


def parse_class_names(text: str | None) -> tuple[str, ...]:
    """Read class names, ``a,b,c`` or ``@file`` with one a line; none where `text` is None.

    Raises:
        FedclipError: there is none, a file cannot be read, or a name occurs twice.
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
    return names
