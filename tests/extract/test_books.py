"""Images that are there take part or are accounted for, as `fedclip extract` shows it."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedclip.cache import read_cache
from fedclip.cli import run

Result = tuple[int, str, str]
Extract = Callable[..., Result]
WRITERS: Mapping[str, str] = {"jfif": "jpeg", "jpe": "jpeg", "pgm": "ppm", "avif": "avif"}


@pytest.fixture
def extract(
    tiny_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Extract:
    """Give a function that runs the command in ``tmp_path``: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for variable in ("FEDCLIP_CACHE_DIR", "FEDCLIP_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)

    def call(*arguments: object) -> Result:
        model = ("--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--workers", "0")
        code = run(["extract", *model, *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def picture(kind: str, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    image, buffer = Image.fromarray(pixels), BytesIO()
    (image.convert("L") if kind == "ppm" else image).save(buffer, kind)
    return buffer.getvalue()


def fill(root: Path, files: Sequence[str]) -> Path:
    """Write a picture to each path, in the format of its suffix; PNG for other suffixes."""
    for seed, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(WRITERS.get(path.suffix[1:], "png"), seed))
    return root


def images(domains: Sequence[str], classes: Sequence[str], count: int = 1) -> list[str]:
    return [f"{d}/{c}/{n}.png" for d in domains for c in classes for n in range(count)]


def rows(place: Path) -> dict[str, dict[str, int]]:
    """Count each client's rows in the caches by class."""
    caches = [read_cache(path) for path in sorted(place.rglob("*.h5"))]
    return {
        cache.client: dict(Counter(cache.class_names[label] for label in cache.labels))
        for cache in caches
    }


def last_line(result: Result) -> str:
    code, output, errors = result
    assert code == 0, errors
    return output.splitlines()[-1]


def error(result: Result) -> str:
    code, output, errors = result
    assert (code, output) == (2, "")
    return errors.splitlines()[-1]


def test_images_deeper_than_a_class_are_extracted(extract: Extract, tmp_path: Path) -> None:
    root = fill(
        tmp_path / "pets",
        [
            *images(("photo", "sketch"), ("dog", "horse/set1"), 2),
            *images(("sketch",), ("guitar",), 5),
            *images(("photo",), ("guitar",), 2),
            *images(("photo",), ("guitar/more",), 3),
        ],
    )
    assert (
        last_line(extract("--dataset", root))
        == "files      18 seen: 18 taken, 0 skipped, 0 ignored"
    )
    expected = {"dog": 2, "horse": 2, "guitar": 5}
    assert rows(tmp_path) == {"photo": expected, "sketch": expected}


def mixed(root: Path) -> Path:
    """Give photo's dogs other suffixes, of which HEIC alone cannot be read; PGM to guitars."""
    names = ["1.jfif", "2.jpe", "3.pgm", "4.avif", "5"]
    fill(root, [f"photo/dog/{name}" for name in names])
    (root / "photo/dog/6.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    fill(root, images(("sketch",), ("dog",), 6))
    fill(root, [f"{domain}/guitar/{n}.pgm" for domain in ("photo", "sketch") for n in range(3)])
    return root


def test_images_take_part_whatever_their_suffix_and_those_that_cannot_are_named(
    extract: Extract, tmp_path: Path
) -> None:
    root = mixed(tmp_path / "pets")
    result = extract("--dataset", root)
    assert last_line(result) == (
        "files      18 seen: 17 taken, 1 skipped (1 is HEIC, which Pillow here cannot read), "
        "0 ignored"
    )
    assert "skipped    photo/dog/6.heic: is HEIC, which Pillow here cannot read\n" in result[1]
    assert rows(tmp_path) == {
        "photo": {"dog": 5, "guitar": 3},
        "sketch": {"dog": 6, "guitar": 3},
    }
    assert error(extract("--dataset", root, "--strict")) == (
        "error: photo/dog/6.heic: is HEIC, which Pillow here cannot read; fix or remove unusable "
        "images, or leave out --strict"
    )


@pytest.mark.parametrize(
    ("where", "lost"),
    [
        (("photo/dog",), "photo: none of its 2 images of 'dog' can be used; the first, {}"),
        (("photo/dog", "photo/cat"), "photo: none of its 4 images can be used; the first, {}"),
        (
            ("photo/dog", "sketch/dog"),
            "photo: none of its 2 images of 'dog' can be used; the first, {}",
        ),
    ],
)
def test_a_class_or_a_domain_that_would_vanish_is_refused_and_nothing_is_written(
    extract: Extract, tmp_path: Path, where: Sequence[str], lost: str
) -> None:
    root = fill(tmp_path / "pets", images(("photo", "sketch"), ("cat", "dog"), 2))
    for folder in where:
        for path in (root / folder).iterdir():
            path.rename(path.with_suffix(".heic"))
            path.with_suffix(".heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    first = root / min(where) / "0.heic"
    assert error(extract("--dataset", root)) == (
        f"error: {lost.format(first)}, is HEIC, which Pillow here cannot read; convert, fix or "
        "remove them"
    )
    assert rows(tmp_path) == {}


PACS = ("art_painting", "cartoon", "photo", "sketch")
OFFICE_HOME = ("art", "clipart", "product", "real_world")
SPLITS = {"train": 3, "val": 2, "test": 2}


def test_splits_above_and_below_domains_are_extracted_whole_or_as_chosen(
    extract: Extract, tmp_path: Path
) -> None:
    for split, count in SPLITS.items():
        fill(tmp_path / "data/PACS" / split, images(PACS, ("cat", "dog"), count))
        for domain in OFFICE_HOME:
            folders = [f"{domain}/{split}/{name}" for name in ("cat", "dog")]
            fill(
                tmp_path / "data/office_home_dg",
                [f"{folder}/{n}.png" for folder in folders for n in range(count)],
            )
    for dataset, laid_out, domains in (
        ("pacs", "<split>/<domain>/<class>/<image>", PACS),
        ("office-home", "<domain>/<split>/<class>/<image>", OFFICE_HOME),
        ("office_home_dg", "<domain>/<split>/<class>/<image>", OFFICE_HOME),
    ):
        result = extract("--dataset", dataset)
        assert f"read as {laid_out}, splits test, train and val\n" in result[2]
        assert last_line(result) == "files      56 seen: 56 taken, 0 skipped, 0 ignored"
        assert rows(tmp_path / "caches" / dataset) == {
            domain: {"cat": 7, "dog": 7} for domain in domains
        }
    assert last_line(extract("--dataset", "pacs", "--split", "train")).startswith(
        "files      56 seen: 24 taken, 0 skipped, 32 ignored (32 in another split, such as test/"
    )


def test_a_loose_image_in_a_split_is_refused(extract: Extract, tmp_path: Path) -> None:
    folders = [f"{domain}/{split}/cat" for domain in OFFICE_HOME for split in ("train", "val")]
    fill(tmp_path / "data/office_home_dg", [f"{folder}/0.png" for folder in folders])
    fill(tmp_path / "data/office_home_dg", ["art/train/loose.png"])
    for dataset in ("office-home", "office_home_dg"):
        assert "art/train/loose.png: is in the split 'train', but in none of its folders" in error(
            extract("--dataset", dataset)
        )


def test_two_folders_that_look_like_a_dataset_are_refused_with_both(
    extract: Extract, tmp_path: Path
) -> None:
    fill(tmp_path / "data/backup_2019", images(PACS, ("dog",), 1))
    clean = fill(tmp_path / "data/clean", images(PACS, ("dog",), 2))
    assert error(extract("--dataset", "pacs")) == (
        f"error: data: {tmp_path}/data/backup_2019 and {clean} all look like pacs; choose one with "
        f"--dataset, such as --dataset {tmp_path}/data/backup_2019, or with --data-dir"
    )
    assert last_line(extract("--dataset", clean)).startswith("files      8 seen: 8 taken")


def test_other_files_are_ignored_even_if_strict_and_recorded(
    extract: Extract, tmp_path: Path
) -> None:
    root = fill(tmp_path / "pets", images(("photo", "sketch"), ("cat", "dog")))
    for name in ("README.txt", "labels.csv", "photo/.DS_Store", "photo/cat/Thumbs.db"):
        (root / name).write_bytes(b"P6 is what a text may begin with")
    line = (
        "files      8 seen: 4 taken, 0 skipped, 4 ignored (3 not an image, such as README.txt; 1 "
        "hidden, such as photo/.DS_Store)"
    )
    for _ in range(2):  # extracted, then found up to date
        assert last_line(extract("--dataset", root, "--strict")) == line
    (manifest,) = tmp_path.rglob("manifest.json")
    assert json.loads(manifest.read_text())["books"][str(root)] == {
        "unit": "files",
        "ignored": [
            {"reason": "not an image", "count": 3, "first": "README.txt"},
            {"reason": "hidden", "count": 1, "first": "photo/.DS_Store"},
        ],
        "aside": [],
    }


def test_books_of_an_up_to_date_cache_are_today_s(extract: Extract, tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", images(("photo", "sketch"), ("cat", "dog")))
    assert last_line(extract("--dataset", root)).endswith("4 taken, 0 skipped, 0 ignored")
    (root / "README.txt").write_text("words")
    (path,) = tmp_path.rglob("manifest.json")
    manifest: dict[str, Any] = json.loads(path.read_text())
    del manifest["books"]  # as in a manifest written by an earlier version
    path.write_text(json.dumps(manifest))
    code, output, _ = extract("--dataset", root)
    assert code == 0
    assert output.endswith(
        "encoded    nothing: the cache is up to date\n"
        "files      5 seen: 4 taken, 0 skipped, 1 ignored (1 not an image, such as README.txt)\n"
    )


def test_books_of_a_list_count_its_rows_and_name_unused_columns(
    extract: Extract, tmp_path: Path
) -> None:
    fill(tmp_path / "scans", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    (tmp_path / "scans/b/2.png").write_bytes(b"")
    (tmp_path / "scans/list.csv").write_bytes(
        "Filepath;Class;Domain;Age\r\na/1.png;cat;x;7\r\na/2.png;cat;y;7\r\n"
        "b/1.png;cat;x;7\r\nb/2.png;cat;x;7\r\n".encode("utf-16")
    )
    result = extract("--manifest", tmp_path / "scans/list.csv")
    assert last_line(result) == (
        "rows       4 seen: 3 taken, 1 skipped (1 is empty), 0 ignored; not looked into: column Age"
    )
    assert f"4 images in {tmp_path / 'scans/list.csv'}\n" in result[2]
    assert (
        "read as CSV in UTF-16, separated by ';', Filepath as path, Class as label and Domain as "
        "client\n"
    ) in result[2]
