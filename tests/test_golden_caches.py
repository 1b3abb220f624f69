"""Caches that an earlier version wrote are read, keep their keys and are up to date.

`golden/README.md` says how they were made.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedclip.cache import (
    FeatureCache,
    find_caches,
    load_cache,
    read_cache,
    verify_cache,
    write_cache,
)
from fedclip.cli import run
from fedclip.extract.encoders.spec import DEMO_MODEL

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted((GOLDEN / "caches").rglob("*.h5"))

# Image keys and text keys, as version 1 computed them.
KEYS = {
    "extracted/tinyclip-own-6c62d1ff": (
        "6c62d1ff91f7131ac3bde55822b17ddc3d6edf89de6da626820b3ed4f7f6510b",
        "0eef3b5f7c9fb4256e71ec36bd703bb9056663f3d12268ec297ddc108f92454e",
    ),
    "golden/drawn-none-b0875a23": (
        "b0875a2302f80d2ad5cae2376965353c549e042e834628ffbcbfb8780cec939e",
        "c4754704afd30c2c759bc0b9178d195af3eb7e95952b6c4addf1e884f87cb0fa",
    ),
}

Command = Callable[..., list[str]]


def version_of(path: Path) -> int:
    return path.read_bytes()[12]


def stored(path: Path) -> Mapping[str, Any]:
    """Read a file of version 1 with HDF5 alone."""
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
        arrays = {
            f"{group}/{name}": dataset[()]
            for group in ("image", "text")
            for name, dataset in file[group].items()
        }
    return attributes | arrays


def test_there_are_files_of_version_1() -> None:
    assert len(FILES) == 5
    assert {version_of(path) for path in FILES} == {1}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_read_with_what_hdf5_says_is_in_it(path: Path) -> None:
    cache, expected = read_cache(path), stored(path)
    for name, text in {
        "dataset": cache.dataset,
        "client": cache.client,
        "key": cache.key,
        "encoding-version": "1",
    }.items():
        assert expected[name].decode() == text
    assert dict(cache.encoder) == json.loads(expected["encoder"])
    assert cache.logit_scale == expected["logit_scale"]
    assert cache.normalized == expected["normalized"]
    assert cache.embed_dim == expected["embed_dim"]
    for name, array in {
        "image/features": cache.image_features,
        "image/labels": cache.labels,
        "image/digests": cache.digests,
        "text/features": cache.text_features,
    }.items():
        np.testing.assert_array_equal(array, expected[name])
    for name, strings in {
        "image/ids": cache.ids,
        "text/class_names": cache.class_names,
        "text/templates": cache.templates,
    }.items():
        assert [string.decode() for string in expected[name]] == list(strings)


@pytest.mark.parametrize("name", KEYS)
def test_a_cache_loads_verifies_and_keeps_its_keys(name: str) -> None:
    (folder,) = (each for each in find_caches(GOLDEN / "caches") if each.name == name)
    assert verify_cache(folder) == []
    clients = load_cache(folder)
    assert {(each.key, each.text_key) for each in clients} == {KEYS[name]}
    assert name.endswith(clients[0].key[:8])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_that_is_written_again_is_of_version_2_and_the_same(
    path: Path, tmp_path: Path
) -> None:
    cache = read_cache(path)
    write_cache(cache, tmp_path / path.name)
    again = read_cache(tmp_path / path.name)
    assert version_of(tmp_path / path.name) == 2
    assert (again.key, again.text_key, again.content) == (cache.key, cache.text_key, cache.content)
    assert again.encoder.groups == cache.encoder.groups
    np.testing.assert_array_equal(again.image_features, cache.image_features)
    np.testing.assert_array_equal(again.text_features, cache.text_features)


@pytest.fixture
def extract(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give a function that extracts copies of the golden images, and gives what is printed."""
    shutil.copytree(GOLDEN / "images", empty_folder / "images")
    shutil.copytree(GOLDEN / "caches" / "extracted", empty_folder / "caches" / "extracted")

    def call(*arguments: str) -> list[str]:
        capsys.readouterr()
        images = ("--dataset", "images", "--name", "extracted")
        assert run(["extract", *images, "--device", "cpu", "--model", DEMO_MODEL, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return call


def files() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(Path("caches").rglob("*.h5"))}


def test_images_that_moved_are_not_encoded_again(extract: Command) -> None:
    before = {path.stem: read_cache(path) for path in sorted(Path("caches").rglob("*.h5"))}
    assert "encoded    nothing: the files were rewritten from vectors in the cache" in extract()
    after = {path.stem: read_cache(path) for path in sorted(Path("caches").rglob("*.h5"))}
    assert [*after] == ["outline", "solid"]
    for client, cache in after.items():
        assert_same_rows(cache, before[client])
    assert "encoded    nothing: the cache is up to date" in extract()


def test_files_of_version_1_are_up_to_date_and_stay_as_they_are(extract: Command) -> None:
    old = files()
    extract()  # which notes in the manifest where the images are now
    (folder,) = find_caches(Path("caches"))
    for client, content in old.items():
        folder.file(client).write_bytes(content)
    assert "encoded    nothing: the cache is up to date" in extract()
    assert files() == old


def test_an_image_that_is_added_is_the_only_one_to_be_encoded(extract: Command) -> None:
    before = {path.stem: read_cache(path) for path in sorted(Path("caches").rglob("*.h5"))}
    new = Path("images/outline/circle/new.png")
    shutil.copy("images/outline/circle/0.png", new)
    with new.open("ab") as file:
        file.write(b"more")  # behind the end of the image
    assert any(line.startswith("encoded    1 image and 0 prompts") for line in extract())
    outline, solid = load_cache(*find_caches(Path("caches")))
    assert "outline/circle/new.png" in outline.ids
    rows = [outline.ids.index(image) for image in before["outline"].ids]
    np.testing.assert_array_equal(outline.image_features[rows], before["outline"].image_features)
    assert_same_rows(solid, before["solid"])
    assert {version_of(path) for path in Path("caches").rglob("*.h5")} == {2}


def assert_same_rows(cache: FeatureCache, other: FeatureCache) -> None:
    assert (cache.key, cache.text_key, cache.content) == (other.key, other.text_key, other.content)
    np.testing.assert_array_equal(cache.image_features, other.image_features)
    np.testing.assert_array_equal(cache.text_features, other.text_features)
