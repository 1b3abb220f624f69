"""Texts from data as they are shown, and counts in words."""

import pytest

from fedclip.cache.common.text import counted, duration, inflected, printable


@pytest.mark.parametrize("text", ["café", "फ़ोटो", "東京", "क्\u200dष", "a\u3000b", "[red]x[/]"])
def test_printable_keeps_words_of_any_script(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("a\u202eb\u2066c\u200fd", r"a\u202eb\u2066c\u200fd"),
        ("\x9b31m\x00", r"\x9b31m\x00"),
        ("a\udcffb\u2028", r"a\udcffb\u2028"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_printable_escapes_what_moves_or_colors_its_surroundings(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_counted_has_the_singular_for_one_alone() -> None:
    assert [counted(count, "row") for count in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]
    assert [inflected(count, "image") for count in (1, 1000)] == ["image", "images"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (137_900, "1 d 14 h"),
        (86_400 * 30, "30 d"),
    ],
)
def test_duration_has_the_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
