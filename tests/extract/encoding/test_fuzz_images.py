"""Files that are almost images: each gives finite pixels or a reason, and none stops the rest."""

import json
import resource
import subprocess
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from fedclip.cache import read_cache
from fedclip.cache.schema import content_digest
from fedclip.extract.datasets.base import FileSource
from fedclip.extract.datasets.formats import FORMATS
from fedclip.extract.encoders.openclip import open_clip_decoder
from fedclip.extract.encoders.spec import RESIZERS
from fedclip.extract.encoding.loader import load_batches

pytestmark = pytest.mark.filterwarnings("ignore:IM image format is deprecated")

Fedclip = Callable[..., subprocess.CompletedProcess[str]]

SIDE = 32
PREPROCESS = PreprocessCfg(size=SIDE)
TRANSFORM = image_transform_v2(PREPROCESS, is_train=False)
SHAPE = (3, SIDE, SIDE)
BLANK = torch.zeros(SHAPE)

# Pillow's own limit on pixels, which we also apply to what an image is resized to.
PIXEL_LIMIT = Image.MAX_IMAGE_PIXELS or 0

# A header that is hit may ask for any amount of memory: a limit, not the machine, answers it.
ADDRESS_SPACE = 12 << 30

# Numbers that lengths and sizes in headers do not expect, with their widths in bytes.
EXTREMES = ((0, 1), (0, 4), (1, 4), (2**16 - 1, 2), (2**31 - 1, 4), (2**31, 4), (2**32 - 1, 4))


@cache
def originals() -> tuple[bytes, ...]:
    """Save a small picture in every format that is read and every mode that Pillow writes."""
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((20, 24), Image.Resampling.BICUBIC)
    alpha = picture.copy()
    alpha.putalpha(128)
    plain = [picture.convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK", "I", "F")]
    plain += [alpha, alpha.convert("LA"), picture.convert("L").convert("I;16")]
    formats = sorted(set(Image.SAVE) & set(FORMATS))
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture]}
    packings = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    cases: list[tuple[str, Image.Image, dict[str, Any]]] = [
        *((kind, image, {}) for kind in formats for image in plain),
        *((kind, picture, frames) for kind in ("GIF", "PNG", "TIFF", "WEBP")),
        *(("TIFF", picture, {"compression": packing}) for packing in packings),
        ("TIFF", plain[2], {"compression": "group4"}),
        ("JPEG", picture, {"progressive": True}),
        ("WEBP", picture, {"lossless": True}),
    ]
    saved = (_saved(image, kind, options) for kind, image, options in cases)
    return tuple(dict.fromkeys(content for content in saved if content))


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, KeyError):
        return b""  # there is no such mode in this format
    return buffer.getvalue()


THIN = _saved(Image.new("1", (200_000, 1)), "PNG", {})  # 32 by 6,400,000 pixels when resized


def spoil(random: Random) -> bytes:
    """Do to a picture what faults of disks, networks and writers do, once or twice."""
    content = bytearray(random.choice(originals()))
    for _ in range(random.randint(1, 2)):
        # Half of the time in the header, which decides most.
        place = random.randrange(random.choice([64, max(1, len(content))]))
        kind = random.choice(
            ["flip", "flip", "flip", "cut", "join", "drop", "repeat", "noise", "int"]
        )
        if kind == "flip" and content:
            for _ in range(random.randint(1, 4)):
                spot = min(random.randrange(place, place + 500), len(content) - 1)
                content[spot] ^= 1 << random.randrange(8)
        elif kind == "cut":
            del content[place:]
        elif kind == "join":
            other = random.choice(originals())
            content[place:] = other[random.randrange(len(other)) :]
        elif kind == "drop":
            del content[place : place + random.randint(1, 40)]
        elif kind == "repeat":
            content[place:place] = content[: random.randint(1, 200)]
        elif kind == "noise":
            content[place : place + 30] = random.randbytes(30)
        elif kind == "int":
            value, width = random.choice(EXTREMES)
            order: Literal["big", "little"] = random.choice(("big", "little"))
            content[place : place + width] = value.to_bytes(width, order)
    return bytes(content)


def check_reason(reason: str) -> None:
    assert reason
    assert reason.isprintable()
    assert " at 0x" not in reason, "an address differs from run to run"


def theirs(content: bytes) -> torch.Tensor | None:
    """Decode as open_clip's users do; None if Pillow cannot, or if resizing would be a bomb."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                resized = SIDE * (SIDE * max(image.size) // min(image.size))
                if resized > 2 * PIXEL_LIMIT:
                    return None
                pixels: torch.Tensor = TRANSFORM(image)
                return pixels
        except Exception:  # whatever a decoder makes of it
            return None


def test_every_common_format_is_among_the_originals_and_they_can_be_decoded() -> None:
    kinds = {Image.open(BytesIO(content)).format for content in originals()}
    assert {"BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"} <= kinds
    # Not all: Pillow writes some modes that it does not convert.
    decoded = [content for content in originals() if theirs(content) is not None]
    assert len(decoded) > 0.8 * len(originals())


@pytest.mark.parametrize("resizer", RESIZERS)
@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=st.binary(max_size=300) | st.randoms(use_true_random=True).map(spoil))
@example(content=b"")
@example(content=THIN)
def test_any_bytes_give_finite_pixels_or_a_reason(
    tmp_path: Path, resizer: str, content: bytes
) -> None:
    path = tmp_path / "any.jpg"
    path.write_bytes(content)
    (batch,) = load_batches([FileSource(path)], open_clip_decoder(PREPROCESS, resizer), BLANK, 1, 0)
    assert batch.digests == (content_digest(content),)
    assert batch.inputs.shape == (1, *SHAPE)
    assert batch.inputs.isfinite().all()
    expected = theirs(content)
    if expected is None:
        check_reason(*batch.problems)
        assert torch.equal(batch.inputs[0], BLANK)
    else:
        assert batch.problems == ("",)
        if resizer == "pillow":
            assert torch.equal(batch.inputs[0], expected)


def extract_spoilt(
    fedclip: Fedclip, place: Path, model: Path, resizer: str, seed: int, count: int
) -> None:
    """Extract `count` spoilt files in one go, and check that each is accounted for."""
    folder = place / "spoilt" / "photo" / "any"
    folder.mkdir(parents=True)
    random = Random(seed)
    contents = [random.choice(originals()), *(spoil(random) for _ in range(count - 1))]
    for index, content in enumerate(contents):
        (folder / f"{index:05d}.jpg").write_bytes(content)
    done = fedclip(
        *("extract", "--dataset", folder.parents[1], "--model", f"local-dir:{model}"),
        *("--device", "cpu", "--workers", 2, "--resizer", resizer),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE,) * 2),
    )
    assert done.returncode == 0, done.stderr
    (file,) = place.rglob("*.h5")
    features = read_cache(file)
    manifest = json.loads((file.parent / "manifest.json").read_text(encoding="utf-8"))
    skipped = manifest["clients"]["photo"]["skipped"]
    check_accounts(contents, features.ids, [item["id"] for item in skipped])
    for item in skipped:
        check_reason(item["reason"])
    assert np.isfinite(features.image_features).all()
    for name, digest in zip(features.ids, features.digests, strict=True):
        assert digest.tobytes() == content_digest(contents[int(Path(name).stem)])


def check_accounts(contents: Sequence[bytes], used: Sequence[str], skipped: Sequence[str]) -> None:
    names = [f"photo/any/{index:05d}.jpg" for index in range(len(contents))]
    assert sorted([*used, *skipped]) == names
    assert len(used) > len(contents) / 20, "too few of them come through to say anything"
    assert len(skipped) > len(contents) / 5


@pytest.mark.slow
@pytest.mark.parametrize("resizer", RESIZERS)
def test_hundreds_of_spoilt_files_are_all_accounted_for_in_one_extraction(
    fedclip: Fedclip, tmp_path: Path, tiny_clip: Path, resizer: str
) -> None:
    extract_spoilt(fedclip, tmp_path, tiny_clip, resizer, seed=0, count=600)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("resizer", RESIZERS)
def test_twenty_thousand_spoilt_files_are_all_accounted_for(
    fedclip: Fedclip, tmp_path: Path, tiny_clip: Path, resizer: str, seed: int
) -> None:
    extract_spoilt(fedclip, tmp_path, tiny_clip, resizer, seed, count=5000)
