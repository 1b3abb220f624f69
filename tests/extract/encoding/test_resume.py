"""An extraction that is killed, refused room or kept out loses next to nothing."""

import contextlib
import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedclip.cache import (
    CacheError,
    CacheFolder,
    FeatureCache,
    FedclipError,
    find_caches,
    read_cache,
    remove_cache,
    write_cache,
)
from fedclip.cache.common.progress import show_progress
from fedclip.cache.parts import PARTS, KnownVectors, find_parts, read_part, write_part
from fedclip.cache.store import writing
from fedclip.extract.datasets.base import FileSource
from fedclip.extract.encoders.openclip import OpenClipEncoder
from fedclip.extract.encoders.spec import LOCAL_DIR, EncoderName
from fedclip.extract.encoding import worker as share
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Extraction, Request

Fedclip = Callable[..., subprocess.CompletedProcess[str]]
MakeFeatures = Callable[..., FeatureCache]
MakeImages = Callable[..., Path]
Run = Callable[..., Extraction]


@pytest.fixture
def log() -> io.StringIO:
    """Give what extractions write their notes to."""
    return io.StringIO()


@pytest.fixture
def run(tmp_path: Path, tiny_clip: Path, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that extracts in batches of 2 and parts of 4 rows."""
    monkeypatch.setattr(share, "PART_ROWS", 4)
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
        with show_progress(log) as progress:
            return extract(request, progress)

    return extraction


def content(folder: CacheFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.files}


# Times that an extraction is started, killed and resumed.
TRIALS = 20

# One process imports everything once; each extraction is a child of it, or two children
# that a launcher would call ranks, so that two dozen can be killed in well under a minute.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from fedclip.extract.encoding import worker as share
from fedclip.extract.encoders.openclip import OpenClipEncoder
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.pipeline import extract_share
from fedclip.extract.encoding.distributed import Ranks
from fedclip.extract.request import Request

root, model, work = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
trials, ranks = map(int, sys.argv[4:])
share.PART_ROWS = 8

def begin(cache_dir):
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
            name = EncoderName.of(model, None)
            request = Request(
                dataset=str(root), encoder=name, templates=("a {}",), data_dir=work,
                cache_dir=cache_dir, batch_size=4, workers=0
            )
            extract_share(request, Ranks.launched())
            os._exit(0)
        children.append(child)
    return children

def end(children):
    return [os.waitpid(child, 0)[1] for child in children]

def running(children):
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return all(os.waitid(os.P_PID, child, look) is None for child in children)

def parts(cache_dir):
    while True:
        try:
            return len(list(cache_dir.glob("*/*/parts/[!.]*.part")))
        except FileNotFoundError:  # the folder was removed while it was listed
            pass

# A moment is told by what is done, not by a clock that a busy machine would put off.
def wait_for_a_moment(cache_dir, children, moments):
    if moments.random() < 0.3:  # while it starts
        time.sleep(moments.uniform(0, 0.3))
        return
    enough = moments.randint(min(parts(cache_dir) + 1, 30), 30)
    while running(children) and parts(cache_dir) < enough:
        time.sleep(0.0005)
    time.sleep(moments.uniform(0, 0.01))

def files(cache_dir):
    return {path.name: path.read_bytes() for path in cache_dir.glob("*/*/*.h5")}

wanted, ranks = ranks, 1
assert end(begin(work / "whole")) == [0]
ranks = wanted
assert not any(end(begin(work / "usual")))
assert files(work / "usual") == files(work / "whole")
expected = files(work / "whole")
assert len(expected) == 2
same, killed, midway = 0, 0, 0
for trial in range(trials):
    cache_dir = work / f"trial-{trial}"
    moments = random.Random(trial)
    for _ in range(1 + trial % 2):
        children = begin(cache_dir)
        wait_for_a_moment(cache_dir, children, moments)
        for child in children:
            os.kill(child, signal.SIGKILL)
        killed += any(map(os.WIFSIGNALED, end(children)))
        midway += parts(cache_dir) > 0
    assert not any(end(begin(cache_dir)))
    same += files(cache_dir) == expected
    left = {path.name for path in cache_dir.rglob("*") if path.is_file()} - set(expected)
    assert left == {"manifest.json"}, left
print(json.dumps({"same": same, "killed": killed, "midway": midway}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_whenever_it_is_killed_the_next_run_ends_with_the_same_bytes(
    make_images: MakeImages,
    tiny_clip: Path,
    tmp_path: Path,
    ranks: int,
    hangs: int,
) -> None:
    root = make_images(images=60)
    arguments = (root, f"{LOCAL_DIR}{tiny_clip}", tmp_path, TRIALS, ranks)
    result = subprocess.run(
        [sys.executable, "-c", KILLS, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=hangs,
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["same"] == TRIALS
    assert counts["killed"] >= TRIALS
    assert counts["midway"] >= TRIALS / 2


@pytest.mark.slow
@pytest.mark.parametrize("other", ["images", "weights"])
def test_a_rank_that_has_other_images_or_weights_than_the_first_is_refused(
    make_images: MakeImages, tiny_clip: Path, tmp_path: Path, other: str, hangs: int
) -> None:
    roots, models = [make_images("pets")] * 2, [f"{LOCAL_DIR}{tiny_clip}"] * 2
    if other == "images":
        roots[1] = make_images("others/pets")  # as many, of the same names
        Image.new("RGB", (40, 48)).save(roots[1] / "photo" / "cat" / "00.png")

    def launch(rank: int) -> subprocess.Popen[str]:
        options = ["--dataset", str(roots[rank]), "--model", models[rank], "--device", "cpu"]
        random = ["--pretrained", "random"] if other == "weights" and rank == 1 else []
        return subprocess.Popen(
            [sys.executable, "-m", "fedclip", "extract", *options, *random],
            cwd=tmp_path,
            env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    with launch(0) as first, launch(1) as second:
        _, errors = second.communicate(timeout=hangs)
        first.kill()  # as a launcher would
    assert second.returncode == 2
    (line,) = [line for line in errors.splitlines() if line]
    expected = {
        "images": "rank 1 finds other images here than rank 0",
        "weights": "the encoder of rank 1 (key ",
    }
    assert expected[other] in line
    assert list(tmp_path.glob("caches/*/*/*.h5")) == []


def processes_with(mark: str) -> list[int]:
    """Find the processes that have `mark` in their environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


@pytest.mark.slow  # the real launcher; what it starts is tested above
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks processes up in /proc")
def test_under_torchrun_too(
    fedclip: Fedclip, make_images: MakeImages, tiny_clip: Path, tmp_path: Path, hangs: int
) -> None:
    root = make_images(images=300)
    (root / "photo" / "cat" / "00.png").write_bytes(b"")
    arguments = ("extract", "--dataset", str(root), "--model", f"{LOCAL_DIR}{tiny_clip}")
    assert fedclip(*arguments, "--cache-dir", "alone").returncode == 0
    mark = f"FEDCLIP_CACHE_DIR={tmp_path / 'shared'}"

    def launch() -> subprocess.Popen[str]:
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        return subprocess.Popen(
            [*torchrun, "--nproc-per-node", "2", "-m", "fedclip", *arguments],
            env={**os.environ, "FEDCLIP_CACHE_DIR": str(tmp_path / "shared")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with launch() as first:
        while first.poll() is None and not list(tmp_path.glob("shared/*/*/parts/[!.]*.part")):
            time.sleep(0.01)
        for process in processes_with(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("shared/*/*/*.h5"))
    with launch() as second:
        output, errors = second.communicate(timeout=hangs)
    assert second.returncode == 0, errors
    assert "2 ranks" in errors
    assert "encoded images)" in errors
    assert output.count("cache ") == 1
    assert "photo/cat/00.png: is empty" in output
    written = [
        {path.name: path.read_bytes() for path in tmp_path.glob(f"{place}/*/*/*.h5")}
        for place in ("alone", "shared")
    ]
    assert len(written[0]) == 2
    assert written[0] == written[1]


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def stop_after(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_images = OpenClipEncoder.launch
    seen = 0

    def limited(self: OpenClipEncoder, pixels: Any) -> Any:
        nonlocal seen
        seen += len(pixels)
        if seen > images:
            raise StoppedError
        return encode_images(self, pixels)

    monkeypatch.setattr(OpenClipEncoder, "launch", limited)


def test_what_was_encoded_is_taken_up_and_only_the_rest_is_encoded(
    run: Run, make_images: MakeImages, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(images=6)
    expected = content(run(root, "undisturbed").folder)
    with monkeypatch.context() as patch:
        stop_after(10, patch)
        with pytest.raises(StoppedError):
            run(root)
    result = run(root)
    assert [client.encoded for client in result.clients] == [4, 12]
    assert "           (resuming after 8 encoded images)\n" in log.getvalue()
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


def test_parts_are_read_back_in_any_order(tmp_path: Path) -> None:
    vectors = np.arange(20, dtype=np.float32).reshape(5, 4)
    digests = [bytes([index]) * 16 for index in range(5)]
    paths = [
        write_part(tmp_path, digests[:2], vectors[:2]),
        write_part(tmp_path, digests[2:], vectors[2:]),
    ]
    assert find_parts(tmp_path) == sorted(paths)
    known = KnownVectors()
    for path in paths:
        known.add_part(path)
    assert len(known) == 5
    assert digests[3] in known
    assert bytes(16 * [9]) not in known
    order = [4, 0, 2, 1, 4]
    gathered = known.gather([digests[index] for index in order])
    assert gathered.dtype == np.float32
    assert np.array_equal(gathered, vectors[order])


def test_each_file_is_read_once_however_rows_of_several_lie_among_each_other(
    tmp_path: Path, make_features: MakeFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_features("photo", rows=6)
    write_cache(cache, tmp_path / "photo.h5")
    old = [digest.tobytes() for digest in cache.digests]
    new = [bytes([index]) * 16 for index in range(6)]
    vectors = np.arange(48, dtype=np.float32).reshape(6, 8)
    read: list[Path] = []

    def recorded(reader: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def call(path: Path) -> Any:
            read.append(path)
            return reader(path)

        return call

    known = KnownVectors()
    known.add_client(tmp_path / "photo.h5", cache)
    part = write_part(tmp_path, new, vectors)
    known.add_part(part)
    monkeypatch.setattr("fedclip.cache.parts.read_cache", recorded(read_cache))
    monkeypatch.setattr("fedclip.cache.parts.read_part", recorded(read_part))
    mixed = [digest for pair in zip(old, reversed(new), strict=True) for digest in pair]
    gathered = known.gather(mixed)
    assert read == [tmp_path / "photo.h5", part]
    assert np.array_equal(gathered[::2], cache.image_features)
    assert np.array_equal(gathered[1::2], vectors[::-1])


def test_a_damaged_part_is_refused_by_name(tmp_path: Path) -> None:
    path = write_part(tmp_path, [bytes(16)], np.zeros((1, 4), np.float32))
    spoiled = bytearray(path.read_bytes())
    spoiled[-1] ^= 1
    path.write_bytes(spoiled)
    with pytest.raises(CacheError, match=f"{path.name}: is damaged"):
        read_part(path)


def test_what_a_damaged_part_held_is_encoded_again(
    run: Run, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(images=6)
    expected = content(run(root, "undisturbed").folder)
    with monkeypatch.context() as patch:
        stop_after(10, patch)
        with pytest.raises(StoppedError):
            run(root)
    first, _ = sorted(root.parent.glob("caches/*/*/parts/*.part"))
    first.write_bytes(first.read_bytes()[:-7])
    result = run(root)
    assert result.encoded == 24 - 4
    assert content(result.folder) == expected


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
    write_part(folder, [bytes(16)], np.zeros((1, 16), np.float32))
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


def test_a_forced_extraction_that_was_stopped_is_gone_on_with(
    run: Run, make_images: MakeImages, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(images=6)
    expected = content(run(root, "undisturbed", batch_size=3).folder)
    run(root)
    with monkeypatch.context() as patch:
        stop_after(9, patch)
        with pytest.raises(StoppedError):
            run(root, force=True, batch_size=3)
    result = run(root)
    assert "           (resuming an extraction with --force)\n" in log.getvalue()
    assert result.encoded == 24 - 6
    assert result.folder.read_manifest()["batch_size"] == 3
    assert content(result.folder) == expected
    assert run(root).encoded == 0


def test_a_forced_extraction_that_was_stopped_at_once_is_gone_on_with_in_any_batch_size(
    run: Run, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images()
    expected = content(run(root, "undisturbed", batch_size=3).folder)
    run(root)
    with monkeypatch.context() as patch:
        stop_after(0, patch)
        with pytest.raises(StoppedError):
            run(root, force=True, batch_size=4)
    result = run(root, batch_size=3)
    assert result.encoded == 12
    assert content(result.folder) == expected


def test_force_for_one_site_leaves_the_others_as_they_are_and_known(
    run: Run, make_images: MakeImages
) -> None:
    sites = {name: make_images(f"at-{name}", (".",)) for name in ("a", "b")}
    for name, root in sites.items():
        folder = run(root, name="scans", client=name).folder
    before, manifest = content(folder), folder.read_manifest()
    forced = run(sites["b"], name="scans", client="b", force=True, batch_size=3)
    assert forced.encoded == 6
    assert content(folder) == before
    assert folder.read_manifest()["batch_size"] == 2  # as that of a's file
    assert folder.read_manifest()["clients"]["a"] == manifest["clients"]["a"]
    with pytest.raises(FedclipError, match="choose another name for this folder"):
        run(make_images("other", (".",)), name="scans", client="a")
    assert not run(sites["a"], name="scans", client="a").written


def test_strict_writes_nothing_as_finished_where_an_image_is_bad_and_keeps_what_it_encoded(
    run: Run, make_images: MakeImages
) -> None:
    root = make_images(images=4)
    bad = root / "sketch" / "cat" / "01.png"
    bad.write_bytes(b"no image")
    with pytest.raises(FedclipError) as error:
        run(root, strict=True)
    assert str(error.value).startswith(
        "sketch/cat/01.png: is not an image that Pillow can read; fix or remove"
    )
    assert find_caches(root.parent / "caches") == []
    result = run(root)
    assert result.encoded == 0
    assert len(result.skipped) == 1
    with pytest.raises(FedclipError, match=r"sketch/cat/01.png"):
        run(root, strict=True)
    bad.unlink()
    assert run(root, strict=True).encoded == 0


GONE = ("", "photo", "photo/cat", "photo/cat/02.png")


@pytest.mark.parametrize("gone", GONE, ids=["all", "a domain", "a class", "an image"])
@pytest.mark.parametrize("back", [False, True])
def test_what_went_away_midway_makes_no_file_smaller(
    run: Run, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch, gone: str, back: bool
) -> None:
    root = make_images()
    expected = content(run(root, "undisturbed").folder)
    before = content(run(root).folder)
    read, there, aside = FileSource.read, root / gone, root.parent / "aside"
    reads: list[Path] = []
    one_at_a_time = Lock()

    def read_without_disk(self: FileSource) -> bytes:
        with one_at_a_time:
            reads.append(self.path)
            if len(reads) == 1:
                there.rename(aside)
            if len(reads) == 12 and back:
                aside.rename(there)
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "read", read_without_disk)
        with pytest.raises(FedclipError) as error:
            run(root, force=True)
    assert str(error.value).startswith(f"{root}: photo/")
    assert "cannot be read: No such file or directory, as if its disk had been" in str(error.value)
    folder = next(root.parent.glob("caches/*/*"))
    assert content(CacheFolder(folder)) == before
    if not back:
        aside.rename(there)
    assert content(run(root).folder) == expected


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
def test_a_disk_that_fails_makes_no_file_smaller(
    run: Run, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    root = make_images()
    read = FileSource.read

    def failing(self: FileSource) -> bytes:
        if self.path.name == "01.png":
            raise OSError(code, os.strerror(code), str(self.path))
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "read", failing)
        with pytest.raises(FedclipError, match=re.escape(os.strerror(code))):
            run(root)
    assert find_caches(root.parent / "caches") == []
    assert run(root).skipped == ()


@pytest.mark.slow
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
    assert refused.stderr.splitlines()[-1].endswith(
        "/photo.h5: File too large; raise the limit on the size of files (ulimit -f) and run this "
        "again"
    )
    left = {path.name for path in (tmp_path / "caches").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".h5") or name.startswith(".")]
    result = fedclip(*command)
    assert result.returncode == 0, result.stderr
    # The part's 256 rows are of 160 different pictures.
    assert "(resuming after 160 encoded images)" in result.stderr
    (file,) = (tmp_path / "caches").glob("*/*/*.h5")
    assert len(read_cache(file).labels) == 300
