"""Class names to prompts."""

from pathlib import Path

import pytest

from fedclip.cache import FedclipError
from fedclip.extract.encoders.prompts import (
    DEFAULT_TEMPLATE,
    check_templates,
    parse_class_names,
    prompt,
    templates_of,
)


@pytest.mark.parametrize(
    ("template", "class_name", "expected"),
    [
        (DEFAULT_TEMPLATE, "dog", "a picture of a dog"),
        ("a sketch of a {}.", "alarm_clock", "a sketch of a alarm clock."),
        ("{}", "a_b_c", "a b c"),
        ("a {} in {braces} with_underscores", "dog", "a dog in {braces} with_underscores"),
        ("a {}, 100% {0}", "dog", "a dog, 100% {0}"),
    ],
)
def test_a_prompt_is_the_template_with_the_name_spelled_with_spaces(
    template: str, class_name: str, expected: str
) -> None:
    assert prompt(template, class_name) == expected


@pytest.mark.parametrize("class_name", ["{}", "{0}", "{x}", "{0.__class__}", "{{}}", "100%s"])
def test_a_class_name_is_put_in_and_never_formatted(class_name: str) -> None:
    assert prompt("a {} here", class_name) == f"a {class_name.replace('_', ' ')} here"


@pytest.mark.parametrize("template", ["", "a picture", "{0}", "{ }", "{} and {}", "{}{}"])
def test_a_template_without_exactly_one_place_for_the_class_is_refused(template: str) -> None:
    with pytest.raises(FedclipError) as error:
        check_templates(["a {}", template])
    assert str(error.value) == (
        f"--template {template!r}: has {template.count('{}')} placeholders {{}}; use exactly one, "
        "for the class name"
    )


def test_repeated_templates_are_dropped_and_the_order_stays() -> None:
    assert check_templates(["b {}", "a {}", "b {}", "c {}", "a {}"]) == ("b {}", "a {}", "c {}")


def test_the_published_template_sets() -> None:
    seven, eighty = templates_of("openai7"), templates_of("openai80")
    assert seven == (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )
    assert len(eighty) == len(set(eighty)) == 80
    assert (eighty[0], eighty[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
    assert set(seven) < set(eighty)
    assert check_templates(eighty) == eighty
    assert templates_of(None) == ()


def test_an_unknown_template_set_is_refused() -> None:
    with pytest.raises(FedclipError, match="unknown template set 'openai8'; did you mean openai80"):
        templates_of("openai8")


@pytest.mark.parametrize("template", ["a {} \udcff", "a \0 {}"], ids=["not UTF-8", "NUL"])
def test_a_template_that_no_cache_can_keep_is_refused(template: str) -> None:
    with pytest.raises(
        FedclipError, match=r"^--template 'a .*': is a text (that is not|with a NUL)"
    ):
        check_templates(["a {}", template])


def test_class_names_that_no_cache_can_keep_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("dog\nc\0at\n")
    with pytest.raises(FedclipError, match=r"classes.txt: has a class 'c\\x00at' with a NUL"):
        parse_class_names(f"@{file}")
    with pytest.raises(FedclipError, match=r"has a class 'c\\udcffat' that is not UTF-8; rename"):
        parse_class_names("dog,c\udcffat")
