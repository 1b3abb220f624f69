"""Files are whole or absent, and names are safe."""

import errno
import fcntl
import os
import re
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import FedclipError
from fedclip.cache.common.files import (
    TEMPORARY_PREFIX,
    check_name,
    check_writable,
    lock,
    regular,
    replacing,
    replacing_folder,
    slug,
    to_json,
    write_json,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_writing_file(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        raise error


def stop_writing_folder(path: Path, error: type[BaseException]) -> None:
    with replacing_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_bytes(b"content")
        raise error


def write_on_full_disk(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"new")


@pytest.mark.parametrize("name", ["a", "real_world", "ViT-B-32", "1.5", "x+y", "café", "a" * 200])
def test_a_safe_name_is_returned(name: str) -> None:
    assert check_name(name, "client") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "../x", "/x", "a/b", "a\\b", "a b", "a\n", "a\0", "_a", "a" * 201]
)
def test_an_unsafe_name_is_refused_in_one_line_that_shows_it(name: str) -> None:
    with pytest.raises(FedclipError) as caught:
        check_name(name, "client")
    message = str(caught.value)
    assert message.startswith(f"client {name!r} cannot name a file")
    assert len(message.splitlines()) == 1


@given(st.text())
def test_a_name_that_passes_stays_in_its_folder(name: str) -> None:
    try:
        check_name(name, "client")
    except FedclipError:
        return
    assert Path("caches", name).parts == ("caches", name)
    assert not name.startswith(".")


@given(st.text())
def test_a_slug_is_a_safe_name_or_empty(text: str) -> None:
    name = slug(text)
    assert name == "" or check_name(name, "slug") == name


def test_a_slug_keeps_what_can_be_read() -> None:
    assert slug("  Office Home (2017)/v1.0 ") == "Office-Home-2017-v1.0"


def test_what_may_have_no_end_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("linked").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    for name in ("pipe", "linked", "socket", "/dev/null"):
        with pytest.raises(FedclipError) as caught:
            regular(Path(name))
        assert str(caught.value) == (
            f"{name}: is not a regular file; save its content as one, and pass that"
        )
    Path("file").touch()
    for name in ("file", ".", "absent", "a\0b"):
        assert regular(Path(name)) == Path(name)


def test_a_file_is_replaced_when_the_new_one_is_done(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(TEMPORARY_PREFIX)
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_write_leaves_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error):
        stop_writing_file(path, error)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("stop_writing", [stop_writing_file, stop_writing_folder])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_first_write_leaves_nothing(
    tmp_path: Path,
    stop_writing: Callable[[Path, type[BaseException]], None],
    error: type[BaseException],
) -> None:
    with pytest.raises(error):
        stop_writing(tmp_path / "name", error)
    assert names_in(tmp_path) == []


def test_a_folder_in_the_way_of_a_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught, replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert names_in(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /dev/full")
def test_a_disk_without_room_is_told_of_with_the_file_s_own_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space left") as caught:
        write_on_full_disk(path)
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="No such file") as caught, replacing_folder(path) as place:
        (place / "inner" / "file").touch()
    assert caught.value.filename == str(path / "inner" / "file")
    assert names_in(tmp_path) == []


def test_an_error_that_names_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "file"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_appears_when_it_is_done(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "deep" / "folder"
    if existing:
        path.mkdir(parents=True)
    with replacing_folder(path) as temporary:
        (temporary / "file").write_bytes(b"content")
        assert path.exists() == existing
    assert (path / "file").read_bytes() == b"content"
    assert names_in(path.parent) == ["folder"]


def test_a_folder_with_content_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_bytes(b"old")
    with pytest.raises(FedclipError) as caught, replacing_folder(path):
        raise AssertionError("began to make what cannot take its place")
    assert str(caught.value) == (
        f"{path}: exists and is not empty; move or remove it, then run again"
    )
    assert (path / "file").read_bytes() == b"old"
    assert names_in(tmp_path) == ["folder"]


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path: Path) -> None:
    # In a container the process numbers repeat.
    left = f"{TEMPORARY_PREFIX}{os.getpid()}-"
    (tmp_path / f"{left}folder").mkdir()
    (tmp_path / f"{left}folder" / "stale").touch()
    (tmp_path / f"{left}file").write_bytes(b"stale and long")
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_bytes(b"content")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
    assert names_in(tmp_path) == ["file", "folder"]
    assert names_in(tmp_path / "folder") == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_a_file_s_mode_follows_the_umask_whatever_wrote_its_content(
    tmp_path: Path, mask: int
) -> None:
    def private(path: str, flags: int) -> int:
        return os.open(path, flags, 0o600)

    before = os.umask(mask)
    try:
        for name in ("new", "old", "old"):
            with replacing(tmp_path / name) as temporary:
                temporary.unlink()
                with open(temporary, "w", opener=private) as file:
                    file.write("content")
    finally:
        os.umask(before)
    for name in ("new", "old"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, int], None]:
    """Give a function that makes a function of the system fail with an error number."""

    def fail(module: Any, name: str, number: int) -> None:
        def function(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(module, name, function)

    return fail


Fails = Callable[[Any, str, int], None]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_is_replaced_where_nothing_can_be_synced(
    tmp_path: Path, fails: Fails, number: int
) -> None:
    fails(os, "fsync", number)
    write_json(tmp_path / "file", 1)
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "file").touch()
    assert names_in(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_sync_that_fails_leaves_the_old_file(tmp_path: Path, fails: Fails, number: int) -> None:
    write_json(tmp_path / "file", "old")
    fails(os, "fsync", number)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        write_json(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == '"old"\n'


def test_a_lock_that_another_holds_is_not_given(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert lock(one.fileno(), tmp_path)
        assert not lock(other.fileno(), tmp_path)
        one.close()
        assert lock(other.fileno(), tmp_path)


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, fails: Fails) -> None:
    fails(fcntl, "flock", errno.EIO)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="Input/output"):
        lock(file.fileno(), tmp_path)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path, "--runs-dir x")
    check_writable(tmp_path / "not" / "there" / "yet", "--runs-dir x")
    assert names_in(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(FedclipError) as caught:
        check_writable(tmp_path / "file" / "below", f"--runs-dir {tmp_path / 'file' / 'below'}")
    assert str(caught.value) == (
        f"--runs-dir {tmp_path}/file/below: cannot be written (Not a directory); choose another "
        "place"
    )
    assert names_in(tmp_path) == ["file"]


def test_json_for_people_is_sorted_and_readable() -> None:
    assert to_json({"b": "é", "a": [1]}) == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_json_cannot_hold_leaves_the_old_file_alone(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"new": value})
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert names_in(tmp_path) == ["manifest.json"]
