"""The pipeline: what is missing is encoded, what is there is kept, a file is whole or absent."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedclip.cache import (
    CacheFolder,
    EncoderFacts,
    FeatureCache,
    FedclipError,
    image_key,
    latest_cache,
    load_cache,
    read_cache,
    write_cache,
)
from fedclip.cache.common.progress import show_progress
from fedclip.cache.schema import content_digest
from fedclip.cache.store import writing
from fedclip.extract import manifest
from fedclip.extract.datasets.base import FileSource
from fedclip.extract.encoders.openclip import OpenClipEncoder
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Extraction, Request

MakeImages = Callable[..., Path]
MakeFeatures = Callable[..., FeatureCache]
WEIGHTS = "open_clip_model.safetensors"
TEMPLATE = "a picture of a {}"
OTHER_TEMPLATE = "a drawing of a {}"


class Extract:
    """Runs extractions with the tiny CLIP and keeps what they tell."""

    def __init__(self, tiny_clip: Path, cache_dir: Path) -> None:
        self.encoder = EncoderName.of(f"local-dir:{tiny_clip}", None, "fp32")
        self.cache_dir = cache_dir
        self.told = ""

    def __call__(self, dataset: Path | str, **changes: Any) -> Extraction:
        values: dict[str, Any] = {
            "dataset": str(dataset),
            "encoder": self.encoder,
            "templates": (TEMPLATE,),
            "data_dir": self.cache_dir.parent,
            "cache_dir": self.cache_dir,
            "batch_size": 4,
            "workers": 0,
            "device": "cpu",
        }
        stream = io.StringIO()
        try:
            with show_progress(stream) as progress:
                return extract(Request(**{**values, **changes}), progress)
        finally:
            self.told = stream.getvalue()

    @property
    def warnings(self) -> list[str]:
        return [
            line.removeprefix("warning: ")
            for line in self.told.splitlines()
            if line.startswith("warning: ")
        ]


@pytest.fixture
def run(tiny_clip: Path, tmp_path: Path) -> Extract:
    return Extract(tiny_clip, tmp_path / "caches")


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def encoded(extraction: Extraction) -> dict[str, int]:
    return {client.client: client.encoded for client in extraction.clients}


def client(extraction: Extraction, name: str = "photo") -> FeatureCache:
    return read_cache(extraction.folder.file(name))


def vectors(cache: FeatureCache) -> dict[str, list[float]]:
    return {
        identifier: vector.tolist()
        for identifier, vector in zip(cache.ids, cache.image_features, strict=True)
    }


def file_bytes(extraction: Extraction) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in extraction.folder.files}


def refusal(run: Extract, dataset: Path, **changes: Any) -> str:
    with pytest.raises(FedclipError) as error:
        run(dataset, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def outcome(run: Extract, dataset: Path) -> Extraction | str:
    """Extract, and give what came of it or the one line that refused it."""
    try:
        return run(dataset)
    except FedclipError as error:
        return str(error)


def other_weights(tiny_clip: Path, folder: Path, factor: float = 1.1) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(tiny_clip / "open_clip_config.json", folder)
    weights = load_file(tiny_clip / WEIGHTS)
    save_file({name: tensor * factor for name, tensor in weights.items()}, folder / WEIGHTS)
    return folder


def test_an_extraction_leaves_a_file_for_each_client_and_a_manifest(
    run: Extract, make_images: MakeImages, tiny_clip: Path
) -> None:
    root = make_images()
    result = run(root)
    folder = result.folder.path
    key = client(result).key
    assert folder == run.cache_dir / "pets" / f"tinyclip-own-{key[:8]}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "photo.h5",
        "sketch.h5",
    ]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    expected = {
        "dataset": "pets",
        "root": str(root),
        "request": {
            "model": f"local-dir:{tiny_clip}",
            "pretrained": None,
            "precision": "fp32",
            "resizer": "pillow",
            "compiled": False,
        },
        "weights": [
            {"path": str(path), "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
            for path in (tiny_clip, tiny_clip / "open_clip_config.json", tiny_clip / WEIGHTS)
        ],
        "versions": {
            name: version(name) for name in ("open_clip_torch", "torch", "torchvision", "pillow")
        },
        "key": key,
        "encoder": client(result).encoder.groups,
        "batch_size": 4,
    }
    assert {name: manifest[name] for name in expected} == expected
    assert image_key(EncoderFacts.from_groups(manifest["encoder"])) == key
    entries = manifest["clients"].items()
    assert {name: (entry["rows"], entry["skipped"]) for name, entry in entries} == {
        "photo": (6, []),
        "sketch": (6, []),
    }
    assert (result.classes, result.embed_dim, result.encoded_texts) == (2, 16, 2)
    assert encoded(result) == {"photo": 6, "sketch": 6}
    assert result.encoded == 12


def test_a_client_s_file_holds_its_images_by_id_with_class_and_content(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images(images=2)
    cache = client(run(root), "sketch")
    assert (cache.dataset, cache.client, cache.normalized) == ("pets", "sketch", False)
    assert cache.class_names == ("big_dog", "cat")
    assert cache.templates == (TEMPLATE,)
    assert cache.ids == (
        "sketch/big_dog/00.png",
        "sketch/big_dog/01.png",
        "sketch/cat/00.png",
        "sketch/cat/01.png",
    )
    assert cache.labels.tolist() == [0, 0, 1, 1]
    assert cache.image_features.shape == (4, 16)
    assert cache.text_features.shape == (2, 1, 16)
    for identifier, digest in zip(cache.ids, cache.digests, strict=True):
        assert digest.tobytes() == content_digest((root / identifier).read_bytes())


def test_progress_counts_every_image_of_every_client(make_images: MakeImages, run: Extract) -> None:
    seen: list[tuple[str, int, int, str, str]] = []

    def record(task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        seen.append((task, done, total, unit, detail))

    root = make_images()
    (root / "sketch" / "cat" / "00.png").write_bytes(b"")
    request = Request(
        dataset=str(root),
        encoder=run.encoder,
        templates=(TEMPLATE,),
        data_dir=root,
        cache_dir=run.cache_dir,
        batch_size=4,
        workers=0,
        device="cpu",
    )
    extract(request, record)
    assert seen == [
        ("photo", 0, 6, "images", ""),
        ("photo", 4, 6, "images", ""),
        ("photo", 6, 6, "images", ""),
        ("sketch", 2, 6, "images", ""),
        ("sketch", 6, 6, "images", "1 skipped"),
    ]


SECOND_RUN = """
import sys
from fedclip.cli import run
code = run(sys.argv[1:])
heavy = {"torch", "open_clip", "torchvision", "PIL", "pyarrow", "huggingface_hub"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.exit(code)
"""


def test_a_second_run_encodes_nothing_loads_neither_torch_nor_open_clip(
    run: Extract, make_images: MakeImages, tiny_clip: Path, tmp_path: Path, hangs: int
) -> None:
    root = make_images()
    before = file_bytes(run(root))
    arguments = ["extract", "--dataset", str(root), "--model", f"local-dir:{tiny_clip}"]
    again = subprocess.run(
        [sys.executable, "-c", SECOND_RUN, *arguments, "--cache-dir", str(run.cache_dir)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=hangs,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "encoded    nothing: the cache is up to date" in again.stdout
    assert {path.name: path.read_bytes() for path in run.cache_dir.rglob("*.h5")} == before


def test_a_second_run_in_the_same_process_leaves_every_file_as_it_was(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    before = file_bytes(run(root))
    again = run(root)
    assert again.encoded == again.encoded_texts == 0
    assert [(each.client, each.rows) for each in again.clients] == [("photo", 6), ("sketch", 6)]
    assert (again.classes, again.embed_dim) == (2, 16)
    assert "encoder " not in run.told
    assert file_bytes(again) == before


def test_what_is_up_to_date_is_so_while_another_process_has_the_cache(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    first = run(root)
    before = file_bytes(first), first.folder.read_manifest()
    with writing(first.folder):
        assert run(root).encoded == 0
    assert (file_bytes(first), first.folder.read_manifest()) == before


def test_what_is_up_to_date_is_so_where_nothing_may_be_written(
    run: Extract, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images()
    before = file_bytes(run(root))

    def read_only(folder: CacheFolder) -> NoReturn:  # root, who may run this, may write anywhere
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder.path))

    monkeypatch.setattr(manifest, "writing", read_only)
    assert file_bytes(run(root)) == before


def test_what_another_site_enters_in_the_meantime_stays(
    run: Extract, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images()
    folder = run(root).folder
    entry = {"rows": 1, "listing": "", "skipped": [], "root": "elsewhere"}

    def late(folder: CacheFolder) -> AbstractContextManager[None]:
        manifest = folder.read_manifest()
        manifest["clients"]["site"] = entry
        folder.write_manifest(manifest)
        return writing(folder)

    monkeypatch.setattr("fedclip.extract.manifest.writing", late)
    assert run(root).encoded == 0
    entries = folder.read_manifest()["clients"]
    assert list(entries) == ["photo", "site", "sketch"]
    assert entries["site"] == entry


def test_a_file_in_the_place_of_another_client_s_is_put_right(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    first = run(root)
    rows, sketch = vectors(client(first)).keys(), first.folder.file("sketch")
    before = sketch.read_bytes()
    shutil.copy(sketch, first.folder.file("photo"))
    assert encoded(run(root)) == {"photo": 6, "sketch": 0}
    assert vectors(client(first)).keys() == rows
    assert sketch.read_bytes() == before


def test_an_older_file_in_the_place_of_a_client_s_is_put_right(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    file = run(root).folder.file("photo")
    older = file.read_bytes()
    draw(root / "photo" / "cat" / "new.png", seed=1000)
    newer = vectors(client(run(root)))
    file.write_bytes(older)
    result = run(root)
    assert encoded(result) == {"photo": 1, "sketch": 0}
    assert vectors(client(result)).keys() == newer.keys()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_s_file_has_the_same_bytes_from_any_folder_and_any_number_of_workers(
    run: Extract, make_images: MakeImages, tmp_path: Path, workers: int
) -> None:
    root = make_images()
    expected = file_bytes(run(root))
    elsewhere = tmp_path / "some where" / "Else"
    shutil.copytree(root, elsewhere, copy_function=shutil.copy)
    other = run(elsewhere, name="pets", cache_dir=tmp_path / "others", workers=workers)
    assert file_bytes(other) == expected
    assert other.folder.name.startswith("pets/tinyclip-own-")


def test_a_new_image_is_the_only_one_encoded(run: Extract, make_images: MakeImages) -> None:
    root = make_images()
    before = client(run(root))
    draw(root / "photo" / "big_dog" / "00_new.png", seed=1000)
    result = run(root)
    after = client(result)
    assert encoded(result) == {"photo": 1, "sketch": 0}
    assert result.encoded_texts == 0
    assert after.ids == tuple(sorted([*before.ids, "photo/big_dog/00_new.png"]))
    assert after.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    new = vectors(after)
    assert {identifier: new[identifier] for identifier in before.ids} == vectors(before)


def test_a_changed_image_is_encoded_anew_and_gets_its_own_vector(
    run: Extract, make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images()
    before = vectors(client(run(root)))
    draw(root / "photo" / "cat" / "01.png", seed=1000)
    result = run(root)
    after = vectors(client(result))
    assert encoded(result) == {"photo": 1, "sketch": 0}
    assert {identifier for identifier in after if after[identifier] != before[identifier]} == {
        "photo/cat/01.png"
    }
    afresh = vectors(client(run(root, cache_dir=tmp_path / "afresh")))
    np.testing.assert_allclose(
        after["photo/cat/01.png"], afresh["photo/cat/01.png"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("photo/cat/01.png", "photo/cat/zz.png"),
        ("photo/cat/02.png", "photo/cat/03.png"),
        ("photo/cat/01.png", "photo/big_dog/zz.png"),
        ("photo/cat/01.png", "sketch/big_dog/01a.png"),
    ],
    ids=["renamed", "renamed in its place", "of another class", "of another domain"],
)
def test_an_image_that_only_moved_is_not_encoded_again(
    run: Extract, make_images: MakeImages, old: str, new: str
) -> None:
    root = make_images()
    first = run(root)
    vector = vectors(client(first))[old]
    (root / old).rename(root / new)
    result = run(root)
    assert result.encoded == 0
    assert old not in client(result).ids
    domain, class_name, _ = new.split("/")
    cache = client(result, domain)
    assert list(cache.ids) == sorted(cache.ids)
    row = cache.ids.index(new)
    assert cache.image_features[row].tolist() == vector
    assert cache.class_names[cache.labels[row]] == class_name


def test_a_removed_image_leaves_the_cache(run: Extract, make_images: MakeImages) -> None:
    root = make_images()
    before = vectors(client(run(root)))
    (root / "photo" / "cat" / "01.png").unlink()
    result = run(root)
    del before["photo/cat/01.png"]
    assert result.encoded == 0
    assert vectors(client(result)) == before
    assert result.folder.read_manifest()["clients"]["photo"]["rows"] == 5


def test_a_renamed_and_a_new_class_are_labelled_right_and_only_new_content_is_encoded(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    before = vectors(client(run(root)))
    for domain in ("photo", "sketch"):
        (root / domain / "big_dog").rename(root / domain / "wolf")
        draw(root / domain / "ant" / "1.png", seed=len(domain))
    result = run(root)
    cache = client(result)
    assert encoded(result) == {"photo": 1, "sketch": 1}
    assert result.encoded_texts == 2
    assert cache.class_names == ("ant", "cat", "wolf")
    assert [cache.class_names[label] for label in cache.labels] == [
        identifier.split("/")[1] for identifier in cache.ids
    ]
    after = vectors(cache)
    for identifier, vector in before.items():
        assert after[identifier.replace("big_dog", "wolf")] == vector


def test_touched_files_are_not_encoded_again(run: Extract, make_images: MakeImages) -> None:
    root = make_images()
    before = file_bytes(run(root))
    for path in root.rglob("*.png"):
        os.utime(path, (0, 0))
    result = run(root)
    assert result.encoded == 0
    assert "encoder " in run.told
    assert file_bytes(result) == before
    run(root)
    assert "encoder " not in run.told


def test_files_of_one_size_and_time_that_changed_places_are_noticed(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images(domains=("photo",), images=0)
    paths = [root / "photo" / name / "0.ppm" for name in ("cat", "dog")]
    for seed, path in enumerate(paths):
        draw(path, seed)
        os.utime(path, (1000, 1000))
    before = vectors(client(run(root)))
    paths[0].rename(root / "aside")
    paths[1].rename(paths[0])
    (root / "aside").rename(paths[1])
    result = run(root)
    assert result.encoded == 0
    assert vectors(client(result)) == {
        "photo/cat/0.ppm": before["photo/dog/0.ppm"],
        "photo/dog/0.ppm": before["photo/cat/0.ppm"],
    }


def test_an_image_that_may_be_read_at_last_is_encoded(
    run: Extract, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images()
    kept = root / "photo" / "cat" / "00.png"
    read = FileSource.read

    def refused(self: FileSource) -> bytes:  # as to a user who is not root
        if not self.path.stat().st_mode & 0o400:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        return read(self)

    monkeypatch.setattr(FileSource, "read", refused)
    kept.chmod(0)
    assert [item.id for item in run(root).skipped] == ["photo/cat/00.png"]
    assert [item.id for item in run(root).skipped] == ["photo/cat/00.png"]
    kept.chmod(0o600)
    result = run(root)
    assert (result.encoded, result.skipped) == (1, ())


def test_a_manifest_of_shorter_stamps_costs_a_look(run: Extract, make_images: MakeImages) -> None:
    root = make_images(domains=("photo",))
    first = run(root)
    before = file_bytes(first)
    manifest = first.folder.read_manifest()
    digest = hashlib.sha256()
    cache = client(first)
    for identifier, label in zip(cache.ids, cache.labels, strict=True):
        stat = (root / identifier).stat()
        line = f"{identifier}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode())
    manifest["clients"]["photo"]["listing"] = digest.hexdigest()
    first.folder.write_manifest(manifest)
    result = run(root)
    assert "encoder " in run.told
    assert result.encoded == 0
    assert file_bytes(result) == before


def test_images_of_the_same_content_have_rows_of_their_own(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    shutil.copy(root / "photo" / "cat" / "00.png", root / "sketch" / "cat" / "copy.png")
    result = run(root)
    copy = vectors(client(result, "sketch"))["sketch/cat/copy.png"]
    np.testing.assert_allclose(copy, vectors(client(result))["photo/cat/00.png"], rtol=0, atol=1e-5)


def test_a_new_template_encodes_texts_only_and_stays_behind_the_old_one(
    run: Extract, make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images()
    before = client(run(root))
    result = run(root, templates=(OTHER_TEMPLATE,))
    after = client(result)
    assert (result.encoded, result.encoded_texts) == (0, 2)
    assert after.templates == (TEMPLATE, OTHER_TEMPLATE)
    assert vectors(after) == vectors(before)
    np.testing.assert_array_equal(after.text_features[:, :1], before.text_features)
    afresh = client(run(root, templates=(OTHER_TEMPLATE,), cache_dir=tmp_path / "afresh"))
    np.testing.assert_allclose(after.text_features[:, 1:], afresh.text_features, rtol=0, atol=1e-5)
    assert client(result, "sketch").templates == after.templates
    assert client(result).key == before.key
    again = run(root, templates=(OTHER_TEMPLATE, TEMPLATE))
    assert (again.encoded, again.encoded_texts) == (0, 0)
    assert client(again).templates == (TEMPLATE, OTHER_TEMPLATE)


def test_classes_that_a_long_template_makes_one_are_warned_of(
    run: Extract, make_images: MakeImages
) -> None:
    long = "a picture of " + 16 * "very " + "{}"  # the tiny CLIP reads 16 tokens
    root = make_images(classes=("bird", "cat", "dog"))
    run(root, templates=(TEMPLATE,))
    assert run.warnings == []
    run(root, templates=(long,))
    assert run.warnings == [
        f"template {long!r}: the classes 'bird' and 'cat' have the same text features and cannot "
        "be distinguished; shorten the template, since encoders cut off long prompts"
    ]


def test_bad_images_are_skipped_with_their_reasons_and_the_rest_is_right(
    run: Extract, make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images(images=5)
    expected = vectors(client(run(root, cache_dir=tmp_path / "whole")))
    (root / "photo" / "big_dog" / "00.png").write_bytes(b"")
    (root / "photo" / "big_dog" / "03.png").write_text("words")
    content = (root / "photo" / "cat" / "04.png").read_bytes()
    (root / "photo" / "cat" / "04.png").write_bytes(content[: len(content) // 2])
    result = run(root)
    photo, sketch = result.clients
    reasons = {item.id: item.reason for item in photo.skipped}
    assert list(reasons) == [
        "photo/big_dog/00.png",
        "photo/big_dog/03.png",
        "photo/cat/04.png",
    ]
    assert reasons["photo/big_dog/00.png"] == "is empty"
    assert reasons["photo/big_dog/03.png"] == "is not an image that Pillow can read"
    assert reasons["photo/cat/04.png"].startswith("cannot be decoded: ")
    assert (photo.rows, photo.encoded, sketch.rows, sketch.skipped) == (7, 7, 10, ())
    entry = result.folder.read_manifest()["clients"]["photo"]
    assert entry["rows"] == 7
    assert entry["skipped"] == [{"id": name, "reason": reasons[name]} for name in reasons]
    kept = vectors(client(result))
    assert list(kept) == [identifier for identifier in expected if identifier not in reasons]
    for identifier, vector in kept.items():
        np.testing.assert_allclose(vector, expected[identifier], rtol=0, atol=1e-5)
    again = run(root)
    assert again.clients[0].skipped == photo.skipped
    assert again.encoded == 0
    assert "encoder " not in run.told


def test_a_mended_image_is_encoded_by_the_next_run(run: Extract, make_images: MakeImages) -> None:
    root = make_images()
    (root / "photo" / "cat" / "00.png").write_bytes(b"")
    assert run(root).clients[0].rows == 5
    draw(root / "photo" / "cat" / "00.png", seed=1000)
    result = run(root)
    assert encoded(result) == {"photo": 1, "sketch": 0}
    assert result.clients[0].skipped == ()
    assert "photo/cat/00.png" in client(result).ids


def test_a_client_of_which_no_image_can_be_used_is_refused_and_has_no_file(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    for path in (root / "photo").rglob("*.png"):
        path.write_text("words")
    assert refusal(run, root) == (
        f"photo: none of its 6 images can be used; the first, "
        f"{root}/photo/big_dog/00.png, is not an image that Pillow can read; convert, fix or "
        "remove them"
    )
    assert list(run.cache_dir.rglob("photo*")) == []
    assert list(run.cache_dir.rglob(".*")) == []


@pytest.mark.parametrize("something_else_is_new", [True, False])
def test_a_domain_that_went_away_is_warned_of_and_its_file_kept(
    run: Extract, make_images: MakeImages, something_else_is_new: bool
) -> None:
    root = make_images()
    folder = run(root).folder
    shutil.rmtree(root / "sketch")
    if something_else_is_new:
        draw(root / "photo" / "cat" / "new.png", seed=1000)
    result = run(root)
    assert [each.client for each in result.clients] == ["photo"]
    assert run.warnings == [
        f"{folder.file('sketch')}: belongs to a domain that is no longer in {root}; "
        "delete it if it should not take part"
    ]
    assert folder.file("sketch").exists()


def test_a_name_is_not_shared_by_two_folders_that_both_exist(
    run: Extract, make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images()
    before = file_bytes(run(root))
    other = tmp_path / "other" / "pets"
    shutil.copytree(root, other)
    message = refusal(run, other)
    assert message.startswith(f"{other}: the caches of 'pets' were made from {root}; ")
    assert "--name" in message
    assert refusal(run, other, encoder=EncoderName.of(run.encoder.model, "random", "fp32")) == (
        message
    )
    named = run(other, name="more_pets")
    assert named.folder.name.startswith("more_pets/")
    assert file_bytes(run(root)) == before


def test_a_data_set_that_moved_is_taken_for_itself_though_another_is_in_its_old_place(
    run: Extract, make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images()
    before = file_bytes(run(root))
    moved = root.rename(tmp_path / "moved")
    other = make_images()
    draw(moved / "photo" / "cat" / "new.png", seed=1000)
    result = run(moved, name="pets")
    assert encoded(result) == {"photo": 1, "sketch": 0}
    assert result.folder.file("sketch").read_bytes() == before["sketch.h5"]
    assert refusal(run, other).startswith(f"{other}: the caches of 'pets' were made from {moved};")


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_data_set_that_moved_is_not_encoded_again(
    run: Extract, make_images: MakeImages, tmp_path: Path, keep_times: bool
) -> None:
    root = make_images()
    before = file_bytes(run(root))
    moved = tmp_path / "moved" / "pets"
    shutil.copytree(root, moved, copy_function=shutil.copy2 if keep_times else shutil.copy)
    shutil.rmtree(root)
    result = run(moved)
    assert result.encoded == 0
    assert file_bytes(result) == before
    assert result.folder.read_manifest()["root"] == str(moved)


def test_a_cache_keeps_the_batch_size_it_was_begun_with(
    run: Extract, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    encode = OpenClipEncoder.launch

    def recorded(self: OpenClipEncoder, pixels: torch.Tensor) -> Any:
        shapes.append(tuple(pixels.shape))
        return encode(self, pixels)

    monkeypatch.setattr(OpenClipEncoder, "launch", recorded)
    root = make_images()
    run(root, batch_size=4)
    draw(root / "photo" / "cat" / "new.png", seed=1000)
    result = run(root, batch_size=7)
    assert set(shapes) == {(4, 3, 32, 32)}
    assert len(shapes) == 4
    assert result.folder.read_manifest()["batch_size"] == 4
    assert "started with batches of 4" in run.told


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "replaced"])
def test_a_damaged_client_file_is_refused_by_name_and_not_written_over(
    run: Extract, make_images: MakeImages, damage: str
) -> None:
    root = make_images()
    path = run(root).folder.file("photo")
    content = path.read_bytes()
    damaged = {
        "cut": content[:-1],
        "flipped": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "emptied": b"",
        "replaced": b"words",
    }[damage]
    path.write_bytes(damaged)
    assert refusal(run, root).startswith(f"{path}: ")
    draw(root / "sketch" / "cat" / "new.png", seed=1000)
    assert refusal(run, root).startswith(f"{path}: ")
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"clients": null}',
        b'{"clients": []}',
        b'{"clients": {"photo": 3}}',
        b'{"batch_size": null}',
        b'{"batch_size": 0}',
        b'{"batch_size": "many"}',
    ],
)
def test_a_manifest_that_is_lost_or_spoiled_costs_nothing_but_a_look(
    run: Extract, make_images: MakeImages, manifest: bytes | None
) -> None:
    root = make_images()
    first = run(root)
    before = file_bytes(first)
    path = first.folder.path / "manifest.json"
    if manifest is None:
        path.unlink()
    else:
        path.write_bytes(manifest)
    result = run(root)
    assert result.encoded == result.encoded_texts == 0
    assert file_bytes(result) == before
    run(root)
    assert "encoder " not in run.told


def test_changed_weights_make_another_cache_and_leave_the_first(
    run: Extract, make_images: MakeImages, tiny_clip: Path, tmp_path: Path
) -> None:
    root = make_images()
    place = tmp_path / "place"
    shutil.copytree(tiny_clip, place)
    encoder = EncoderName.of(f"local-dir:{place}", None, "fp32")
    first = run(root, encoder=encoder)
    before = file_bytes(first)
    other_weights(tiny_clip, place)
    second = run(root, encoder=encoder)
    assert second.folder.path != first.folder.path
    assert second.encoded == 12
    assert file_bytes(first) == before
    assert np.abs(client(second).image_features - client(first).image_features).max() > 1e-3
    shutil.copy(tiny_clip / WEIGHTS, place)
    third = run(root, encoder=encoder)
    assert third.folder.path == first.folder.path
    assert third.encoded == 0


def test_weights_that_take_precedence_over_the_first_ones_are_noticed(
    run: Extract, make_images: MakeImages, tiny_clip: Path, tmp_path: Path
) -> None:
    root = make_images()
    place = other_weights(tiny_clip, tmp_path / "place")
    (place / WEIGHTS).rename(place / "model.safetensors")
    encoder = EncoderName.of(f"local-dir:{place}", None, "fp32")
    first = run(root, encoder=encoder)
    shutil.copy(tiny_clip / WEIGHTS, place)
    assert run(root, encoder=encoder).folder.path != first.folder.path


def test_the_cache_asked_for_last_is_the_latest_even_if_nothing_was_encoded(
    run: Extract, make_images: MakeImages
) -> None:
    first = run(make_images("pets"))
    second = run(make_images("zoo"))
    for age, extraction in ((2000, first), (1000, second)):
        os.utime(extraction.folder.path / "manifest.json", (age, age))
    assert latest_cache(run.cache_dir) == first.folder
    assert run(make_images("zoo")).encoded == 0
    assert latest_cache(run.cache_dir) == second.folder


def test_a_changed_transform_makes_another_cache(
    run: Extract, make_images: MakeImages, tiny_clip: Path, tmp_path: Path
) -> None:
    root = make_images()
    place = tmp_path / "tinyclip"
    shutil.copytree(tiny_clip, place)
    config = json.loads((place / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    first = run(root)
    (place / "open_clip_config.json").write_text(json.dumps(config))
    second = run(root, encoder=EncoderName.of(f"local-dir:{place}", None, "fp32"))
    assert second.folder.path != first.folder.path
    assert second.encoded == 12


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_another_precision_makes_another_cache(
    run: Extract, make_images: MakeImages, precision: str
) -> None:
    root = make_images(images=1)
    first = run(root)
    second = run(root, encoder=EncoderName.of(run.encoder.model, None, precision))
    assert second.folder.path != first.folder.path
    assert client(second).encoder["precision"] == precision
    assert client(second).image_features.dtype == np.float32


def test_another_resizer_makes_another_cache(run: Extract, make_images: MakeImages) -> None:
    root = make_images(images=1)
    first = run(root)
    second = run(root, encoder=EncoderName.of(run.encoder.model, None, resizer="torchvision"))
    assert second.folder.path != first.folder.path
    assert client(second).encoder["resizer"] == "torchvision"
    assert client(second).text_key == client(first).text_key


def test_another_tokenizer_encodes_the_texts_anew_and_no_image(
    run: Extract, make_images: MakeImages, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images()
    first = run(root)
    before = client(first)
    get_tokenizer = open_clip.get_tokenizer

    def reversing(model: str) -> Any:
        tokenizer = get_tokenizer(model)
        return lambda texts: tokenizer([text[::-1] for text in texts])

    monkeypatch.setattr(open_clip, "get_tokenizer", reversing)
    (tiny_clip / "tokenizer.json").write_text("{}")
    try:
        second = run(root)
    finally:
        (tiny_clip / "tokenizer.json").unlink()
    after = client(second)
    assert second.folder.path == first.folder.path
    assert (second.encoded, second.encoded_texts) == (0, 2)
    assert after.key == before.key
    assert after.text_key != before.text_key
    assert not np.array_equal(after.text_features, before.text_features)
    assert np.array_equal(after.image_features, before.image_features)


def test_random_weights_are_named_in_the_folder_the_file_and_a_warning(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images(images=1)
    random = EncoderName.of(run.encoder.model, "random", "fp32")
    result = run(root, encoder=random)
    assert len(run.warnings) == 1
    assert "RANDOM WEIGHTS" in run.warnings[0]
    assert result.folder.path.name.startswith("tinyclip-random-")
    assert client(result).encoder["random_weights"] is True
    assert client(result).encoder["pretrained"] == "random"
    again = run(root, encoder=random)
    assert again.encoded == 0
    assert "RANDOM WEIGHTS" in run.warnings[0]
    run(root)
    assert run.warnings == []


def test_each_of_several_encoders_that_is_not_trained_is_warned_of(
    run: Extract, make_images: MakeImages
) -> None:
    models = [run.encoder.model, "timm:test_vit"]
    run(make_images(images=1), encoder=EncoderName.joined(models, ["own", "random"]))
    assert [each.split(",")[0] for each in run.warnings] == [
        "RANDOM WEIGHTS: timm:test_vit is not trained"
    ]


@pytest.mark.parametrize(
    ("largest", "reason"),
    [
        (float("nan"), "it has NaN or Inf in visual.proj"),
        (3e38, "check its weights, or choose another --precision"),
    ],
)
def test_weights_that_make_vectors_that_are_not_finite_are_refused_and_leave_no_file(
    run: Extract,
    make_images: MakeImages,
    tiny_clip: Path,
    tmp_path: Path,
    largest: float,
    reason: str,
) -> None:
    place = other_weights(tiny_clip, tmp_path / "place")
    weights = load_file(place / WEIGHTS)
    projection = weights["visual.proj"] / weights["visual.proj"].abs().max() * largest
    save_file({**weights, "visual.proj": projection}, place / WEIGHTS)
    encoder = EncoderName.of(f"local-dir:{place}", None, "fp32")
    assert reason in refusal(run, make_images(), encoder=encoder)
    assert list(run.cache_dir.rglob("*.h5")) == []


def test_an_extraction_that_dies_leaves_no_client_without_the_others(
    run: Extract, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = make_images()
    encode = OpenClipEncoder.launch
    batches = iter(range(2))

    def dying(self: OpenClipEncoder, pixels: torch.Tensor) -> Any:
        if next(batches, None) is None:
            raise MemoryError
        return encode(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(OpenClipEncoder, "launch", dying)
        with pytest.raises(MemoryError):
            run(root)
    left = [path.name for path in run.cache_dir.rglob("*") if path.is_file()]
    assert left == ["manifest.json"]
    result = run(root)
    assert encoded(result) == {"photo": 6, "sketch": 6}
    assert file_bytes(result) == file_bytes(run(root, cache_dir=tmp_path / "afresh"))


@pytest.mark.parametrize("templates", [(TEMPLATE,), (OTHER_TEMPLATE,)])
def test_clients_agree_in_templates_after_a_run_that_was_cut_between_them(
    run: Extract, make_images: MakeImages, templates: tuple[str, ...]
) -> None:
    root = make_images()
    folder = run(root).folder
    old = folder.file("sketch").read_bytes()
    run(root, templates=(OTHER_TEMPLATE,))
    folder.file("sketch").write_bytes(old)
    result = run(root, templates=templates)
    assert result.encoded == 0
    caches = load_cache(folder)
    assert {cache.templates for cache in caches} == {(TEMPLATE, OTHER_TEMPLATE)}


def test_clients_agree_in_classes_after_a_run_that_was_cut_between_them(
    run: Extract, make_images: MakeImages
) -> None:
    root = make_images()
    shutil.rmtree(root / "sketch" / "cat")
    (root / "sketch" / "cat").mkdir()
    folder = run(root).folder
    old = folder.file("sketch").read_bytes()
    for domain in ("photo", "sketch"):
        (root / domain / "cat").rename(root / domain / "wild_cat")
    run(root)
    folder.file("sketch").write_bytes(old)
    assert run(root).encoded == 0
    assert {cache.class_names for cache in load_cache(folder)} == {("big_dog", "wild_cat")}


@pytest.mark.parametrize("something_else_is_new", [True, False])
def test_a_file_of_another_encoder_is_named_or_replaced_and_its_vectors_never_taken_over(
    run: Extract,
    make_images: MakeImages,
    tiny_clip: Path,
    tmp_path: Path,
    something_else_is_new: bool,
) -> None:
    root = make_images()
    folder = run(root).folder
    place = other_weights(tiny_clip, tmp_path / "place")
    other = run(root, encoder=EncoderName.of(f"local-dir:{place}", None, "fp32"))
    shutil.copy(other.folder.file("photo"), folder.file("photo"))
    if something_else_is_new:
        draw(root / "sketch" / "cat" / "new.png", seed=1000)
    result = outcome(run, root)
    if isinstance(result, str):
        assert str(folder.file("photo")) in result
    else:
        afresh = run(root, cache_dir=tmp_path / "afresh")
        assert file_bytes(result)["photo.h5"] == file_bytes(afresh)["photo.h5"]


def test_a_stray_file_of_another_width_is_named_or_passed_over(
    run: Extract, make_images: MakeImages, make_features: MakeFeatures
) -> None:
    root = make_images()
    folder = run(root).folder
    write_cache(make_features("visitor", classes=("big_dog", "cat")), folder.file("visitor"))
    draw(root / "photo" / "cat" / "new.png", seed=1000)
    result = outcome(run, root)
    if isinstance(result, str):
        assert str(folder.file("visitor")) in result
    else:
        assert encoded(result) == {"photo": 1, "sketch": 0}


def test_a_cache_folder_that_cannot_be_is_refused_before_anything_is_encoded(
    run: Extract, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: OpenClipEncoder, pixels: torch.Tensor) -> Any:
        raise AssertionError("encoded before the folder was there")

    monkeypatch.setattr(OpenClipEncoder, "launch", forbidden)
    (tmp_path / "file").touch()
    with pytest.raises((FedclipError, OSError)):
        run(make_images(), cache_dir=tmp_path / "file")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name themselves")
def test_a_data_set_below_a_folder_that_is_not_utf_8_is_extracted_or_refused_in_one_line(
    run: Extract, make_images: MakeImages, tmp_path: Path
) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9") / "pets"
    root.parent.mkdir()
    make_images(images=1).rename(root)
    result = outcome(run, root)
    if isinstance(result, str):
        assert "UTF-8" in result
    else:
        assert result.encoded == 4
        assert run(root).encoded == 0


def test_a_published_data_set_is_filed_under_its_name_and_its_sizes_are_warned_of(
    run: Extract, tmp_path: Path
) -> None:
    domains = ("CALTECH", "LABELME", "PASCAL", "SUN")
    for seed, domain in enumerate(domains):
        for number in range(5):
            draw(tmp_path / "VLCS" / domain / "train" / str(number) / "1.jpg", seed)
    result = run("vlcs")
    assert result.folder.path.parent == run.cache_dir / "vlcs"
    assert [path.stem for path in result.folder.files] == ["caltech", "labelme", "pascal", "sun"]
    assert client(result, "sun").class_names == ("bird", "car", "chair", "dog", "person")
    assert run.warnings == [
        "vlcs: caltech has 5 images here, but 1415 as published",
        "vlcs: labelme has 5 images here, but 2656 as published",
        "vlcs: pascal has 5 images here, but 3376 as published",
        "vlcs: sun has 5 images here, but 3282 as published",
    ]


def test_real_pacs_images_have_the_vectors_that_open_clip_itself_makes(
    run: Extract, shared_data: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    root = tmp_path / "real"
    for domain in ("photo", "sketch"):
        for folder in (shared_data / "pacs" / domain).iterdir():
            target = root / domain / folder.name
            target.mkdir(parents=True)
            for path in sorted(folder.iterdir())[:3]:
                shutil.copy(path, target)
    result = run(root, workers=1)
    assert encoded(result) == {"photo": 21, "sketch": 21}
    place = f"local-dir:{tiny_clip}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    model.eval()
    tokenizer = open_clip.get_tokenizer(place)
    caches = load_cache(CacheFolder(result.folder.path))
    for cache in caches:
        for identifier, label, vector in zip(
            cache.ids, cache.labels, cache.image_features, strict=True
        ):
            image = preprocess(Image.open(root / identifier)).unsqueeze(0)
            with torch.no_grad():
                expected = model.encode_image(image, normalize=False)[0].numpy()
            np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-4)
            assert cache.class_names[label] == identifier.split("/")[1]
    names = caches[0].class_names
    with torch.no_grad():
        texts = model.encode_text(tokenizer([f"a picture of a {name}" for name in names]))
    np.testing.assert_allclose(caches[0].text_features[:, 0], texts.numpy(), rtol=0, atol=1e-4)
