"""What users pass to be classified: files, folders, lists and lines, in whatever state."""

import logging
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as Pictures

from fedclip.cache import FedclipError
from fedclip.extract.datasets.inputs import Image, NamedSource, as_images, find_images, read_lines

MakeImages = Callable[..., Path]
NAMES = ("big_dog", "cat")

pytestmark = pytest.mark.usefixtures("empty_folder")


def found(*places: str) -> list[tuple[str, str | None, str | None]]:
    images = find_images(places, NAMES, Path("data"))
    return [(image.id, image.label, image.client) for image in images]


def written(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def test_folders_are_labelled_as_stage_one_does(make_images: MakeImages) -> None:
    make_images("pets", domains=("Real World",), classes=("Big Dog", "cat"), images=1)
    make_images("pets/train", domains=("photo",), classes=("cat",), images=1)
    Path("pets/Real World/cat/00.png").rename("pets/Real World/cat/new\nline \U0001f600.png")
    make_images("pets", domains=("other",), classes=("fox",), images=1)
    assert found("pets") == [
        ("Real World/Big Dog/00.png", "big_dog", "real_world"),
        ("Real World/cat/new\nline \U0001f600.png", "cat", "real_world"),
        ("other/fox/00.png", None, None),
        ("train/photo/cat/00.png", "cat", "photo"),
    ]


def test_ids_are_composed_as_in_a_cache(make_images: MakeImages) -> None:
    make_images("pets", domains=("Cafe\u0301",), classes=("cat",), images=1)
    assert found("pets") == [("Caf\u00e9/cat/00.png", "cat", "caf\u00e9")]
    listed = written("list.csv", "path,label\npets/Caf\u00e9/cat/00.png,CAT\n")
    (image,) = find_images([listed], NAMES, Path("data"))
    assert (image.id, image.label) == ("pets/Caf\u00e9/cat/00.png", "cat")
    assert image.source.read()


def test_lists_may_name_files_that_are_missing_and_classes_that_are_not_the_adapter_s(
    make_images: MakeImages, caplog: pytest.LogCaptureFixture
) -> None:
    make_images("pets", domains=("photo",), classes=("cat",), images=1)
    rows = ["pets/photo/cat/00.png,BIG DOG,Real World", "gone.png,cat,", "gone.png,fox,photo"]
    with caplog.at_level(logging.WARNING):
        assert found(written("a.csv", "\r\n".join(["path,label,client", *rows, ""]))) == [
            ("pets/photo/cat/00.png", "big_dog", "real_world"),
            ("gone.png", "cat", None),
            ("gone.png", "fox", "photo"),
        ]
    assert "a.csv: the adapter has no class fox, whose rows do not count" in caplog.text
    assert found(written("b.csv", "path;label\n1.png;0\n2.png;1\n")) == [
        ("1.png", "big_dog", None),
        ("2.png", "cat", None),
    ]
    with caplog.at_level(logging.WARNING):
        assert found(written("c.csv", "path,label\n1.png,7\n")) == [("1.png", "7", None)]
    assert "has the label '7', which is neither one of the 2 classes nor" in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no column 'path' (it is empty)"),
        ("name,label\nx,y\n", "has no column 'path' (it has name, label)"),
        ("path\n", "contains no images"),
        ("path,label\n,cat\n", "line 2: has no path; fill it in"),
        (b"path\n\xff.png\n", "is not a CSV file in UTF-8 or UTF-16"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 99, "is not a CSV file in UTF-8 or UTF-16"),
        ("x" * 9999 + "\ny\n", "has no column 'path' (it has ..."),
    ],
)
def test_lists_that_cannot_be_read_are_refused(content: str | bytes, problem: str) -> None:
    with pytest.raises(FedclipError) as refused:
        found(written("list.csv", content))
    assert str(refused.value).startswith("list.csv")
    assert problem in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("place", ["", "nowhere", "a\0b", "\udcff.png"])
def test_places_that_are_not_there_are_refused(place: str) -> None:
    with pytest.raises(FedclipError, match="no such image, folder or list"):
        found(place)


def test_a_device_is_no_place_of_images() -> None:
    with pytest.raises(FedclipError, match=r"^/dev/zero: is not a regular file; "):
        found("/dev/zero")


def test_standard_input_stands_alone_and_an_empty_folder_has_nothing() -> None:
    with pytest.raises(FedclipError, match="so must stand alone"):
        found("-", "-")
    Path("empty").mkdir()
    with pytest.raises(FedclipError, match=r"^empty: contains no images$"):
        found("empty")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_read_in_the_ways_of_unix_and_windows(encoding: str, end: str) -> None:
    stream = BytesIO(end.join(["\u00e4 b.png", "", "c.png", ""]).encode(encoding))
    images = [*read_lines("images", stream)]
    assert [image.name for image in images] == ["\u00e4 b.png", "c.png"]
    stream.seek(0)
    texts = [*read_lines("texts", stream)]
    assert [(text.name, text.place) for text in texts] == [
        ("\u00e4 b.png", "line 1"),
        ("c.png", "line 3"),
    ]
    assert texts[0].source.read() == "\u00e4 b.png".encode()


def test_a_line_is_answered_before_the_next_one_comes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        lines = read_lines("images", stream)
        for name in ("a.png", "b.png"):
            pipe.write(f"{name}\n".encode())
            assert next(lines).name == name


def test_what_is_no_file_is_not_read() -> None:
    for path, problem in (("/dev/zero", "Not a regular file"), ("a\0b", "embedded null")):
        with pytest.raises(OSError, match=problem):
            NamedSource(Path(path)).read()


def test_pictures_of_any_mode_are_taken() -> None:
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I;16")
    images: list[Image] = as_images([Pictures.new(mode, (4, 4)) for mode in modes], NAMES)
    assert [image.name for image in images] == [f"image {number}" for number in range(len(modes))]
    assert all(image.source.read().startswith(b"\x89PNG") for image in images)
