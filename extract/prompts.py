"""Class names to prompts."""

from collections.abc import Sequence

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
