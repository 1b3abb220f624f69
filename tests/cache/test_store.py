"""The folder of caches: find, resolve, load and remove."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclip.cache import (
    CacheError,
    CacheFolder,
    EncoderFacts,
    FeatureCache,
    find_caches,
    latest_cache,
    load_cache,
    remove_cache,
    resolve_cache,
    write_cache,
)

MakeFeatures = Callable[..., FeatureCache]
MakeCache = Callable[..., Path]


@pytest.fixture
def caches(make_cache: MakeCache) -> Path:
    """Give a folder of four caches of three data sets."""
    for name in ("office/vit-1", "office/vit-2", "pacs/rn50-1", "pacs2/vit-1"):
        folder = make_cache({"photo": 5}, name)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_caches_are_found_in_alphabetical_order(caches: Path) -> None:
    assert [folder.name for folder in find_caches(caches)] == [
        "office/vit-1",
        "office/vit-2",
        "pacs/rn50-1",
        "pacs2/vit-1",
    ]


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_a_folder_without_caches_has_none(tmp_path: Path, folder: str) -> None:
    assert find_caches(tmp_path / folder) == []


@pytest.mark.parametrize(
    "path",
    [
        ".hidden/vit/photo.h5",
        "pacs/.hidden/photo.h5",
        "pacs/vit/.hidden.h5",
        "pacs/vit/.tmp-1-photo.h5",
        ".tmp-1-pacs/vit/photo.h5",
        "pacs/vit/photo.txt",
        "pacs/vit/photo.h5/inside",
        "pacs/photo.h5",
        "photo.h5",
        "pacs/vit/deeper/photo.h5",
    ],
)
def test_what_is_hidden_or_elsewhere_is_no_cache(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert find_caches(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("office/vit-2", "office/vit-2"),
        ("pacs", "pacs/rn50-1"),
        ("pacs2", "pacs2/vit-1"),
        ("pacs/", "pacs/rn50-1"),
        ("pacs/rn", "pacs/rn50-1"),
        ("pacs2/v", "pacs2/vit-1"),
    ],
)
def test_a_cache_is_meant_by_its_name_its_data_set_or_a_beginning(
    caches: Path, name: str, found: str
) -> None:
    folder = resolve_cache(caches, name)
    assert (folder.name, folder.path) == (found, caches / found)


def test_a_full_name_means_one_cache_though_another_begins_with_it(make_cache: MakeCache) -> None:
    make_cache({"photo": 5}, "pacs/vit-10")
    caches = make_cache({"photo": 5}, "pacs/vit-1")
    assert resolve_cache(caches, "pacs/vit-1").path == caches / "pacs" / "vit-1"


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("office", "office/vit-1 or office/vit-2"),
        ("office/vit", "office/vit-1 or office/vit-2"),
        ("pac", "pacs/rn50-1 or pacs2/vit-1"),
    ],
)
def test_a_name_that_could_mean_several_is_refused_with_all_of_them(
    caches: Path, name: str, listed: str
) -> None:
    with pytest.raises(CacheError) as caught:
        resolve_cache(caches, name)
    assert str(caught.value) == f"cache {name!r} is ambiguous; choose {listed}"


ALL = "choose office/vit-1, office/vit-2, pacs/rn50-1 or pacs2/vit-1"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("office/vit-3", "did you mean office/vit-1 or office/vit-2?"),
        ("vit-1", "did you mean office/vit-1 or pacs2/vit-1?"),
        ("acs", "did you mean pacs/rn50-1 or pacs2/vit-1?"),
        ("PACS", "did you mean pacs/rn50-1 or pacs2/vit-1?"),
        ("office*", ALL),
        ("*", ALL),
        ("[o]", ALL),
    ],
)
def test_a_name_that_means_none_is_refused_with_what_there_is(
    caches: Path, name: str, hint: str
) -> None:
    with pytest.raises(CacheError) as caught:
        resolve_cache(caches, name)
    assert str(caught.value) == f"unknown cache {name!r} in {caches}; {hint}"


def test_an_empty_name_means_no_cache_even_where_there_is_one(make_cache: MakeCache) -> None:
    caches = make_cache({"photo": 5})
    with pytest.raises(CacheError):
        resolve_cache(caches, "")


@pytest.mark.parametrize("name", ["", "pacs", "pacs/vit"])
def test_where_there_is_no_cache_we_say_how_to_make_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(CacheError, match="fedclip extract") as caught:
        resolve_cache(tmp_path, name)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../other/pacs/vit", "../other", "..", ".", "/", "pacs/../../other/pacs/vit", "~"]
)
def test_no_name_leads_outside(make_cache: MakeCache, tmp_path: Path, name: str) -> None:
    caches = make_cache({"photo": 5}, "pacs/vit")
    shutil.copytree(caches, tmp_path / "other")
    with pytest.raises(CacheError, match="unknown cache"):
        resolve_cache(caches, name)
    with pytest.raises(CacheError, match="unknown cache"):
        resolve_cache(caches, str(caches / "pacs" / "vit"))


def test_a_cache_knows_its_files_and_their_size(make_cache: MakeCache) -> None:
    path = make_cache({"sketch": 5, "photo": 6}) / "tiny" / "drawn"
    folder = CacheFolder(path)
    assert folder.files == [path / "photo.h5", path / "sketch.h5"]
    assert folder.bytes == sum(file.stat().st_size for file in path.iterdir())
    assert folder.file("photo") == path / "photo.h5"


def test_the_latest_cache_is_the_one_whose_manifest_was_written_last(caches: Path) -> None:
    for folder, when in zip(find_caches(caches), (1000, 3000, 2000, 1500), strict=True):
        folder.write_manifest({})
        os.utime(folder.path / "manifest.json", (when, when))
        os.utime(folder.files[0], (10_000 - when, 10_000 - when))
    assert latest_cache(caches).name == "office/vit-2"
    assert latest_cache(caches).made == 3000


def test_without_a_manifest_the_newest_file_counts(make_cache: MakeCache) -> None:
    make_cache({"photo": 5, "sketch": 5}, "old/vit")
    caches = make_cache({"photo": 5}, "new/vit")
    for path, when in (("old/vit/photo", 1), ("old/vit/sketch", 3000), ("new/vit/photo", 2000)):
        os.utime(caches / f"{path}.h5", (when, when))
    assert latest_cache(caches).name == "old/vit"
    assert latest_cache(caches).made == 3000


def test_where_there_is_no_cache_there_is_no_latest_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no caches in"):
        latest_cache(tmp_path)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path)
    folder.write_manifest({"root": "/data/é", "clients": {"photo": {"rows": 3}}})
    assert folder.read_manifest() == {"root": "/data/é", "clients": {"photo": {"rows": 3}}}


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000],
    ids=["absent", "empty", "cut", "list", "null", "not UTF-8", "deep"],
)
def test_a_manifest_that_cannot_be_read_is_empty(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    assert CacheFolder(tmp_path).read_manifest() == {}


def test_clients_are_loaded_in_alphabetical_order_of_their_names(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    for client, file in (("sketch", "a"), ("photo", "b"), ("art", "c")):
        write_cache(make_features(client, rows=7), tmp_path / f"{file}.h5")
    clients = load_cache(CacheFolder(tmp_path))
    assert [cache.client for cache in clients] == ["art", "photo", "sketch"]
    np.testing.assert_array_equal(
        clients[1].image_features, make_features("photo", rows=7).image_features
    )


def test_an_empty_folder_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(
        CacheError, match="contains no client's file; extract the dataset again"
    ) as caught:
        load_cache(CacheFolder(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_damaged_file_is_named_among_whole_ones(make_cache: MakeCache) -> None:
    folder = CacheFolder(make_cache({"art": 5, "photo": 5, "sketch": 5}) / "tiny" / "drawn")
    with folder.file("photo").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CacheError) as caught:
        load_cache(folder)
    assert str(caught.value).startswith(f"{folder.file('photo')}: ")


def refusal_of(folder: Path, first: FeatureCache, second: FeatureCache) -> str:
    """Write two clients beside each other and give the message that refuses them as one cache."""
    folder.mkdir(exist_ok=True)
    paths = [folder / "a.h5", folder / "b.h5"]
    write_cache(first, paths[0])
    write_cache(second, paths[1])
    with pytest.raises(CacheError) as caught:
        load_cache(CacheFolder(folder))
    message = str(caught.value)
    assert all(str(path) in message for path in paths)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("encoder", "facts"),
    [
        (EncoderFacts(shared={"library": "other"}, about={"model": "drawn"}), "(library)"),
        (EncoderFacts(shared={"library": "other"}, image={"size": 32}), "(library, size)"),
        (EncoderFacts(shared={"library": "test", "precision": "fp16"}), "(precision)"),
    ],
)
def test_clients_of_different_encoders_are_refused_with_what_differs(
    make_features: MakeFeatures, tmp_path: Path, encoder: EncoderFacts, facts: str
) -> None:
    message = refusal_of(tmp_path, make_features("photo"), make_features("sketch", encoder=encoder))
    assert f"come from different encoders {facts}" in message


def test_a_fact_that_is_none_is_told_from_one_that_is_missing(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    first = make_features("photo", encoder=EncoderFacts(shared={"library": "test"}))
    second = make_features(
        "sketch", encoder=EncoderFacts(shared={"library": "test"}, image={"resize": None})
    )
    assert "different encoders (resize)" in refusal_of(tmp_path, first, second)


def test_encoders_that_only_are_called_differently_are_one(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    for client, model in (("photo", "ViT-B-32"), ("sketch", "local-dir:vit")):
        encoder = EncoderFacts(shared={"library": "test"}, about={"model": model})
        write_cache(make_features(client, encoder=encoder), tmp_path / f"{client}.h5")
    assert len(load_cache(CacheFolder(tmp_path))) == 2


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        (
            {"classes": ("cat", "dog", "bird")},
            "class_names (only photo has 'fish', only sketch has 'bird')",
        ),
        (
            {"classes": ("dog", "cat", "fish")},
            "class_names (photo and sketch have the same in a different order)",
        ),
        ({"classes": ("cat", "dog")}, "class_names (only photo has 'fish')"),
        (
            {"templates": ("a photo of a {}",)},
            "templates (only photo has 'a picture of a {}', only sketch has 'a photo of a {}')",
        ),
        ({"dataset": "other"}, "dataset (tiny at photo, other at sketch)"),
        ({"logit_scale": 100.0}, "logit_scale (20.0 at photo, 100.0 at sketch)"),
        (
            {"normalized": True, "dataset": "other"},
            "dataset (tiny at photo, other at sketch) and normalized "
            "(False at photo, True at sketch)",
        ),
    ],
)
def test_clients_that_do_not_belong_together_are_refused_with_what_differs(
    make_features: MakeFeatures, tmp_path: Path, changes: dict[str, Any], differing: str
) -> None:
    message = refusal_of(tmp_path, make_features("photo"), make_features("sketch", **changes))
    assert f"differ in {differing};" in message


def test_clients_of_different_widths_are_refused(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    refusal_of(tmp_path, make_features("photo", width=8), make_features("sketch", width=6))


def test_clients_whose_class_texts_differ_by_more_than_rounding_are_refused(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    photo, sketch = make_features("photo"), make_features("sketch")
    rounded = replace(sketch, text_features=sketch.text_features * np.float32(1 + 1e-5))
    for cache in (photo, rounded):
        write_cache(cache, tmp_path / f"{cache.client}.h5")
    assert len(load_cache(CacheFolder(tmp_path))) == 2
    other = replace(sketch, text_features=sketch.text_features[::-1].copy())
    assert "differ in text features" in refusal_of(tmp_path / "pair", photo, other)


def test_the_same_client_twice_is_refused(make_features: MakeFeatures, tmp_path: Path) -> None:
    message = refusal_of(tmp_path, make_features("photo", rows=5), make_features("photo", rows=6))
    assert "both hold the client 'photo'" in message


def test_a_removed_cache_leaves_nothing_behind(make_cache: MakeCache) -> None:
    caches = make_cache({"photo": 5, "sketch": 5})
    folder = CacheFolder(caches / "tiny" / "drawn")
    folder.write_manifest({})
    (folder.path / ".tmp-1-photo.h5").touch()  # of a writer that was killed
    remove_cache(folder)
    assert names(caches) == []


def test_a_removed_cache_leaves_what_is_not_its_own(make_cache: MakeCache) -> None:
    make_cache({"photo": 5}, "tiny/other")
    caches = make_cache({"photo": 5}, "tiny/drawn")
    folder = CacheFolder(caches / "tiny" / "drawn")
    folder.write_manifest({})
    for foreign in ("notes.txt", ".hidden.h5", "folder.h5/inside", "deep/photo.h5"):
        (folder.path / foreign).parent.mkdir(exist_ok=True)
        (folder.path / foreign).touch()
    remove_cache(folder)
    assert names(caches) == [
        "tiny",
        "tiny/drawn",
        "tiny/drawn/.hidden.h5",
        "tiny/drawn/deep",
        "tiny/drawn/deep/photo.h5",
        "tiny/drawn/folder.h5",
        "tiny/drawn/folder.h5/inside",
        "tiny/drawn/notes.txt",
        "tiny/other",
        "tiny/other/photo.h5",
    ]


def test_removing_a_link_spares_what_it_points_to(make_cache: MakeCache, tmp_path: Path) -> None:
    folder = CacheFolder(make_cache({"photo": 5}) / "tiny" / "drawn")
    original = tmp_path / "original.h5"
    folder.file("photo").rename(original)
    folder.file("photo").symlink_to(original)
    remove_cache(folder)
    assert original.is_file()
    assert not folder.path.exists()
