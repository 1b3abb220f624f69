"""Names in any script: compared composed, stored whole, and safe as files' names."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import FedclipError
from fedclip.cache.common.files import (
    MAX_CLIENT_BYTES,
    check_client,
    check_name,
    client_name,
    file_name,
    path_for,
    slug,
)
from fedclip.cache.common.text import match_names, near_twins, nfc

CAFE, CAFE_APART = "caf\u00e9", "cafe\u0301"
SEOUL, SEOUL_APART = "\uc11c\uc6b8", unicodedata.normalize("NFD", "\uc11c\uc6b8")

SIMPLE = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,40}", fullmatch=True).filter(
    lambda name: not re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", name)
)


@given(st.text())
def test_a_file_s_name_is_ascii_and_can_be_a_file_on_any_system(name: str) -> None:
    safe = file_name(name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_.+~-]*", safe)
    assert len(safe) <= 200
    assert not safe.endswith(".")
    assert safe.split(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
    assert Path("caches", safe).parts == ("caches", safe)


@given(st.text())
def test_a_file_s_name_is_the_same_each_time_and_for_each_way_of_writing_accents(name: str) -> None:
    forms = {name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}
    assert len({file_name(form) for form in forms}) == 1


@given(st.lists(st.text(max_size=8), unique_by=nfc))
def test_different_names_have_different_files(names: list[str]) -> None:
    assert len({file_name(name).lower() for name in names}) == len(names)


@given(SIMPLE)
def test_a_simple_name_is_its_own_file_s_name(name: str) -> None:
    assert file_name(name) == name
    assert client_name(name) == name


@given(st.text(min_size=1), st.integers(0, 99))
def test_no_simple_name_is_the_safe_form_of_another(name: str, number: int) -> None:
    if file_name(name) != nfc(name):
        assert file_name(file_name(name)) != file_name(name)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("real_world", "real_world"),
        ("hospital-a", "hospital-a"),
        ("photo-000", "photo-000"),
        ("v1.5+x", "v1.5+x"),
        ("Real World (old)", "real_world_old~7409b3419bf1c6cc"),
        ("Photo", None),
        ("東京", "client~130016b2599bf7e5"),
        ("फ़ोटो", None),
        ("real/world", None),
        ("con", None),
        ("nul.txt", None),
        ("com1", None),
        ("config.json", None),
        ("adapter.safetensors", None),
        ("a.", None),
        ("..", None),
        (".lock", None),
        ("-x", None),
        ("~", None),
        ("x" * 201, None),
    ],
)
def test_a_name_that_is_not_simple_gets_a_readable_part_and_a_hash(
    name: str, safe: str | None
) -> None:
    found = file_name(name)
    assert found == safe or safe is None
    if safe is None:
        assert re.fullmatch(r"[a-z0-9_]{1,40}~[0-9a-f]{16}", found)


@pytest.mark.parametrize(
    ("domain", "client"),
    [
        ("Real World", "real_world"),
        ("Art", "art"),
        ("Clip-Art", "clip-art"),
        ("東京", "東京"),
        ("\u00dcbung", "\u00fcbung"),
        ("U\u0308bung", "\u00fcbung"),
        (SEOUL_APART, SEOUL),
        ("Real World (old)", "Real World (old)"),
        ("फ़ोटो", unicodedata.normalize("NFC", "फ़ोटो")),
        ("real/world", "real/world"),
        (" Art", "art"),
        ("_photo", "_photo"),
        ("photo:1", "photo:1"),
        ("😀", "😀"),
        ("x" * 300, "x" * 300),
    ],
)
def test_a_domain_keeps_its_name_unless_it_always_was_written_smaller(
    domain: str, client: str
) -> None:
    assert client_name(domain) == client
    assert client_name(client) == client


@given(st.text())
def test_a_client_s_name_is_composed_and_names_itself(domain: str) -> None:
    try:
        client = client_name(domain)
    except FedclipError:
        return
    assert client == nfc(client) == client_name(client) == check_client(client)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "has no letter, digit or symbol"),
        ("..", "has no letter, digit or symbol"),
        ("/", "has no letter, digit or symbol"),
        ("a\nb", "contains a line break"),
        ("a\0b", "contains a line break, a control character"),
        ("a\u2028b", "contains a line break"),
        ("caf\udce9", "bytes that are not UTF-8"),
        ("x" * (MAX_CLIENT_BYTES + 1), "is longer than 1024 bytes"),
    ],
)
def test_a_name_that_cannot_be_shown_or_stored_is_refused(name: str, problem: str) -> None:
    with pytest.raises(FedclipError) as caught:
        client_name(name)
    message = str(caught.value)
    assert message.startswith("domain '")
    assert problem in message
    assert message.endswith("; rename it")
    assert len(message.splitlines()) == 1


def test_a_file_named_by_an_earlier_version_is_still_found(tmp_path: Path) -> None:
    assert path_for(tmp_path, "東京", ".h5").name == f"{file_name('東京')}.h5"
    (tmp_path / "東京.h5").touch()
    (tmp_path / f"{SEOUL_APART}.h5").touch()
    assert path_for(tmp_path, "東京", ".h5") == tmp_path / "東京.h5"
    assert path_for(tmp_path, SEOUL, ".h5") == tmp_path / f"{SEOUL_APART}.h5"
    assert path_for(tmp_path, "../東京", ".h5").parent == tmp_path


@pytest.mark.parametrize("name", ["फ़ोटो", CAFE_APART, "ไทย"])
def test_letters_with_marks_name_caches_and_runs(name: str) -> None:
    assert check_name(name, "run") == nfc(name)
    assert slug(name) == nfc(name)


@pytest.mark.parametrize("name", ["\u0301a", "a b\u0301", "\u0301"])
def test_a_mark_alone_names_nothing(name: str) -> None:
    with pytest.raises(FedclipError, match="cannot name a file"):
        check_name(name, "run")


def test_names_match_exactly_or_else_by_a_spelling_that_only_one_has() -> None:
    known = [CAFE, "Big Dog", "cat", "Cat"]
    names = [CAFE_APART, "big_dog", " CAFÉ ", "cat", "CAT", "fish"]
    assert match_names(names, known) == {
        CAFE_APART: CAFE,
        "big_dog": "Big Dog",
        " CAFÉ ": CAFE,
        "cat": "cat",
    }


def test_near_twins_differ_only_in_case_spaces_or_underscores() -> None:
    assert near_twins(["Dog", "cat", "dog", "big dog", "big_dog", "DOG"]) == [
        ("Dog", "dog"),
        ("big dog", "big_dog"),
        ("Dog", "DOG"),
    ]
