"""Image files to pixel batches: one shape, one order, and a reason for what cannot be used."""

import os
import signal
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from fedclip.cache import FedclipError
from fedclip.cache.schema import content_digest
from fedclip.extract.datasets.base import FileSource
from fedclip.extract.encoders.openclip import open_clip_decoder
from fedclip.extract.encoding.loader import Batch, load_batches

PREPROCESS = PreprocessCfg(size=16)
TRANSFORM = image_transform_v2(PREPROCESS, is_train=False)
DECODE = open_clip_decoder(PREPROCESS, "pillow")
SHAPE = (3, 16, 16)
BLANK = torch.zeros(SHAPE)


def picture(seed: int = 0, size: tuple[int, int] = (40, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, suffix: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, suffix)
    return buffer.getvalue()


def batches(paths: Sequence[Path], batch_size: int = 4, workers: int = 0) -> list[Batch]:
    sources = [FileSource(path) for path in paths]
    return list(load_batches(sources, DECODE, BLANK, batch_size, workers))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index:02d}.png" for index in range(10)]
    for index, path in enumerate(paths):
        picture(index, (30 + index, 50 - index)).save(path)
    paths[4].write_bytes(b"")
    return paths


def test_each_image_is_decoded_in_its_place_and_identified_by_its_bytes(files: list[Path]) -> None:
    loaded = batches(files)
    pixels = torch.cat([batch.inputs for batch in loaded])
    digests = [digest for batch in loaded for digest in batch.digests]
    assert digests == [content_digest(path.read_bytes()) for path in files]
    for index, path in enumerate(files):
        expected = BLANK if index == 4 else TRANSFORM(Image.open(path))
        assert torch.equal(pixels[index], expected)


def test_the_last_batch_is_padded_with_zeros_to_the_one_shape(files: list[Path]) -> None:
    loaded = batches(files)
    assert [tuple(batch.inputs.shape) for batch in loaded] == [(4, *SHAPE)] * 3
    assert [len(batch.digests) for batch in loaded] == [4, 4, 2]
    assert [len(batch.problems) for batch in loaded] == [4, 4, 2]
    assert loaded[2].inputs[:2].abs().sum() > 0
    assert torch.equal(loaded[2].inputs[2:], torch.zeros(2, *SHAPE))
    assert {batch.inputs.dtype for batch in loaded} == {torch.float32}


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(files: list[Path], workers: int) -> None:
    alone, shared = batches(files), batches(files, workers=workers)
    assert len(shared) == len(alone)
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert one.digests == other.digests
        assert one.problems == other.problems


@pytest.mark.parametrize("workers", [0, 1])
def test_no_image_gives_no_batch(workers: int) -> None:
    assert batches([], workers=workers) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"these are words, not pixels", "is not an image that Pillow can read"),
        (encoded(picture(), "png")[:16], "cannot be decoded: "),
        (encoded(picture(), "jpeg")[:1000], "cannot be decoded: image file is truncated"),
        (encoded(picture(), "png")[:1000], "cannot be decoded: "),
        (bytes(100_000), "is not an image that Pillow can read"),
    ],
    ids=["empty", "text", "cut in the header", "cut jpeg", "cut png", "zeros"],
)
def test_a_file_that_is_no_usable_image_is_named_with_its_problem(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    picture().save(tmp_path / "good.png")
    (batch,) = batches([tmp_path / "bad.png", tmp_path / "good.png"])
    assert batch.problems[0].startswith(problem)
    assert "\n" not in batch.problems[0]
    assert batch.problems[1] == ""
    assert batch.digests[0] == content_digest(content)
    assert torch.equal(batch.inputs[0], BLANK)
    assert torch.equal(batch.inputs[1], TRANSFORM(picture()))


def test_a_file_that_went_away_is_a_problem(tmp_path: Path) -> None:
    (batch,) = batches([tmp_path / "gone.png"])
    assert batch.problems == ("cannot be read: No such file or directory",)


def test_a_folder_in_place_of_a_file_is_a_problem(tmp_path: Path) -> None:
    (batch,) = batches([tmp_path])
    assert batch.problems == ("cannot be read: Is a directory",)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    picture().save(tmp_path / "mine.png")
    (tmp_path / "mine.png").chmod(0)
    (batch,) = batches([tmp_path / "mine.png"])
    assert batch.problems == ("cannot be read: Permission denied",)


def test_a_decompression_bomb_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (batch,) = batches([tmp_path / "bomb.png"])
    assert batch.problems[0].startswith("cannot be decoded: Image size (1920 pixels) exceeds limit")


@pytest.mark.filterwarnings("error")
def test_an_image_that_pillow_only_warns_of_is_used_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture().save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (batch,) = batches([tmp_path / "large.png"])
    assert batch.problems == ("",)
    assert torch.equal(batch.inputs[0], TRANSFORM(picture()))


def test_bytes_are_decoded_whatever_the_file_is_called() -> None:
    image = picture()
    assert torch.equal(DECODE(encoded(image, "bmp")), TRANSFORM(image))


def test_a_worker_that_is_killed_is_explained_in_one_line(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        picture(index).save(path)

    def deadly(content: bytes) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(f"alive with {content!r}")

    with pytest.raises(FedclipError, match=r"was killed.*--workers 0"):
        list(load_batches([FileSource(path) for path in paths], deadly, BLANK, 2, workers=1))
