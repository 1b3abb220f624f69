"""An extraction that is killed, refused room or kept out loses next to nothing."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedclip.cache import CacheFolder, FedclipError, find_caches, read_cache, remove_cache
from fedclip.cache.parts import PARTS, read_parts, write_part
from fedclip.cache.store import writing
from fedclip.extract import encode
from fedclip.extract.encoders import Encoder
from fedclip.extract.names import LOCAL_DIR, EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Extraction, Request

Fedclip = Callable[..., subprocess.CompletedProcess[str]]
MakeImages = Callable[..., Path]
Run = Callable[..., Extraction]


class Told:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        self.lines.append(f"{task} {done}/{total}")


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def run(tmp_path: Path, tiny_clip: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that extracts in batches of 2 and parts of 4 rows."""
    monkeypatch.setattr(encode, "PART_ROWS", 4)
    encoder = EncoderName.of(f"{LOCAL_DIR}{tiny_clip}", None, "fp32")

    def extraction(root: Path, caches: str = "caches", **options: Any) -> Extraction:
        request = Request(
            dataset=str(root),
            encoder=encoder,
            templates=("a picture of a {}",),
            data_dir=tmp_path,
            cache_dir=tmp_path / caches,
            **{"batch_size": 2, "workers": 0, **options},
        )
        return extract(request, told)

    return extraction


def content(folder: CacheFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.files}


# One process imports everything once; each extraction is a child of it, so that two
# dozen of them can be killed in well under a minute.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from fedclip.extract import encode
from fedclip.extract.encoders import Encoder
from fedclip.extract.names import EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Request

root, model, work, trials = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
encode.PART_ROWS = 8

class Silent:
    def note(self, text): pass
    warn = note
    def progress(self, *told): pass

def begin(cache_dir):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        name = EncoderName.of(model, None, "fp32")
        request = Request(
            str(root), name, ("a {}",), work, cache_dir, batch_size=4, workers=0
        )
        extract(request, Silent())
        os._exit(0)
    return child

def files(cache_dir):
    return {path.name: path.read_bytes() for path in cache_dir.glob("*/*/*.h5")}

start = time.monotonic()
assert os.waitpid(begin(work / "whole"), 0)[1] == 0
usual = time.monotonic() - start
expected = files(work / "whole")
assert len(expected) == 2
same, killed, midway = 0, 0, 0
for trial in range(trials):
    cache_dir = work / f"trial-{trial}"
    for _ in range(1 + trial % 2):
        child = begin(cache_dir)
        time.sleep(random.Random(trial).uniform(0.1, 1.0) * usual)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        midway += bool(list(cache_dir.glob("*/*/parts/*.part")))
    assert os.waitpid(begin(cache_dir), 0)[1] == 0
    same += files(cache_dir) == expected
    left = {path.name for path in cache_dir.rglob("*") if path.is_file()} - set(expected)
    assert left == {"manifest.json"}, left
print(json.dumps({"same": same, "killed": killed, "midway": midway}))
"""


def test_whenever_it_is_killed_the_next_run_ends_with_the_same_bytes(
    make_images: MakeImages, tiny_clip: Path, tmp_path: Path
) -> None:
    root = make_images(images=60)
    result = subprocess.run(
        [sys.executable, "-c", KILLS, str(root), f"{LOCAL_DIR}{tiny_clip}", str(tmp_path), "24"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["same"] == 24
    assert counts["killed"] >= 20
    assert counts["midway"] >= 5


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def stop_after(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_images = Encoder.encode_images
    seen = 0

    def limited(self: Encoder, pixels: Any) -> Any:
        nonlocal seen
        seen += len(pixels)
        if seen > images:
            raise StoppedError
        return encode_images(self, pixels)

    monkeypatch.setattr(Encoder, "encode_images", limited)


def test_what_was_encoded_is_taken_up_and_only_the_rest_is_encoded(
    run: Run, make_images: MakeImages, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(images=6)
    expected = content(run(root, "undisturbed").folder)
    with monkeypatch.context() as patch:
        stop_after(10, patch)
        with pytest.raises(StoppedError):
            run(root)
    result = run(root)
    assert [client.encoded for client in result.clients] == [4, 12]
    assert "           (taking up 8 images that were encoded before)" in told.lines
    assert content(result.folder) == expected
    assert not (result.folder.path / PARTS).exists()


def test_the_batch_shape_of_the_parts_is_kept(
    run: Run, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(images=6)
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        with pytest.raises(StoppedError):
            run(root)
    result = run(root, batch_size=5)
    assert result.folder.read_manifest()["batch_size"] == 2
    assert content(result.folder) == content(run(root, "undisturbed").folder)


def test_parts_are_read_back_and_damaged_ones_passed_over(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    digests = [bytes([index]) * 16 for index in range(3)]
    write_part(tmp_path, digests[:2], list(vectors[:2]))
    (first,) = (tmp_path / PARTS).iterdir()
    write_part(tmp_path, digests[2:], list(vectors[2:]))
    read = read_parts(tmp_path)
    assert {digest: vector.tolist() for digest, vector in read.items()} == {
        digest: vector.tolist() for digest, vector in zip(digests, vectors, strict=True)
    }
    spoiled = bytearray(first.read_bytes())
    spoiled[-1] ^= 1
    first.write_bytes(spoiled)
    assert list(read_parts(tmp_path)) == digests[2:]


def test_a_second_extraction_into_the_same_cache_is_refused_while_the_first_runs(
    run: Run, make_images: MakeImages
) -> None:
    root = make_images()
    folder = run(root).folder
    before = content(folder)
    Image.new("RGB", (40, 40)).save(root / "photo" / "cat" / "new.png")
    with writing(folder), pytest.raises(FedclipError, match="another extraction is writing"):
        run(root)
    assert content(folder) == before
    assert run(root).encoded == 1


def test_what_a_killed_writer_left_is_cleared_away(run: Run, make_images: MakeImages) -> None:
    root = make_images()
    folder = run(root).folder.path
    (folder / ".tmp-123-photo.h5").write_bytes(b"half")
    Image.new("RGB", (40, 40)).save(root / "photo" / "cat" / "new.png")
    run(root)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("manifest.json", "photo.h5", "sketch.h5")
    ]


def test_parts_left_after_the_last_file_are_cleared_by_a_run_with_nothing_to_do(
    run: Run, make_images: MakeImages
) -> None:
    root = make_images()
    folder = run(root).folder.path
    write_part(folder, [bytes(16)], [np.zeros(16, dtype=np.float32)])
    assert run(root).encoded == 0
    assert not (folder / PARTS).exists()


def test_a_cache_that_is_being_written_is_not_removed(run: Run, make_images: MakeImages) -> None:
    folder = run(make_images()).folder
    with writing(folder), pytest.raises(FedclipError, match="another extraction is writing"):
        remove_cache(folder)
    assert len(folder.files) == 2
    remove_cache(folder)
    assert not folder.path.exists()


def test_force_encodes_everything_again(run: Run, make_images: MakeImages) -> None:
    root = make_images()
    first = run(root)
    before = content(first.folder)
    again = run(root, force=True)
    assert again.encoded == 12
    assert again.encoded_texts == 2
    assert content(again.folder) == before


def test_strict_writes_nothing_as_finished_where_an_image_is_bad_and_keeps_what_it_encoded(
    run: Run, make_images: MakeImages
) -> None:
    root = make_images(images=4)
    bad = root / "sketch" / "cat" / "01.png"
    bad.write_bytes(b"no image")
    with pytest.raises(FedclipError) as error:
        run(root, strict=True)
    assert str(error.value).startswith(
        "1 images cannot be used, the first, sketch/cat/01.png, is no image that Pillow knows"
    )
    assert find_caches(root.parent / "caches") == []
    result = run(root)
    assert [client.encoded for client in result.clients] == [0, 3]
    assert len(result.skipped) == 1
    with pytest.raises(FedclipError, match=r"sketch/cat/01.png"):
        run(root, strict=True)
    bad.unlink()
    assert run(root, strict=True).encoded == 0


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    fedclip: Fedclip, make_images: MakeImages, tiny_clip: Path, tmp_path: Path
) -> None:
    root = make_images(images=150, domains=("photo",))
    # Decoded here, as worker processes hand over their batches through files too.
    model = f"{LOCAL_DIR}{tiny_clip}"
    command = ["extract", "--dataset", root, "--model", model, "--workers", 0]

    def little_room() -> None:
        # Enough for a part of 256 rows, not for the finished file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, 25_000))

    refused = fedclip(*command, preexec_fn=little_room)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "File too large" in refused.stderr.splitlines()[-1]
    left = {path.name for path in (tmp_path / "caches").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".h5") or name.startswith(".")]
    result = fedclip(*command)
    assert result.returncode == 0, result.stderr
    # The part's 256 rows are of 160 different pictures.
    assert "(taking up 160 images that were encoded before)" in result.stderr
    (file,) = (tmp_path / "caches").glob("*/*/*.h5")
    assert len(read_cache(file).labels) == 300
