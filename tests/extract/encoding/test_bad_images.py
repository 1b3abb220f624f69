"""What becomes of bad and odd images: the table of ``docs/images.md``, file by file.

A row's files go through ``fedclip extract`` beside good ones. What the page calls used has
exactly the pixels of open_clip's own transform, what it calls skipped is listed in the
manifest with the page's reason, and what it calls ignored is no image of the dataset.
"""

import json
import os
import re
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, PngImagePlugin

from fedclip.cache import FeatureCache, read_cache
from fedclip.cli import run

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "images.md").read_text(encoding="utf-8")
USED, SKIPPED, IGNORED = "used", "skipped", "ignored"

Draw = Callable[[Path], None]
Theirs = tuple[Any, Callable[[Image.Image], torch.Tensor]]


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 48), seed: int = 0) -> Image.Image:
    """Draw coarse noise, so that every channel and both directions matter."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, suffix: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def transparent() -> Image.Image:
    image = picture()
    image.putalpha(picture("L", seed=1))
    return image


def paletted() -> Image.Image:
    return picture().quantize(16, method=Image.Quantize.MEDIANCUT)


def frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [picture(seed=1), picture(seed=2)]}


def sixteen_bits(dtype: str = "<u2") -> Image.Image:
    """Draw the whole range of 16 bits, most of which 8 bits clip."""
    return Image.fromarray(np.linspace(0, 65535, 48 * 40).reshape(48, 40).astype(dtype))


def floats(*odd: float) -> Image.Image:
    values = np.linspace(-20, 300, 48 * 40, dtype=np.float32).reshape(48, 40)
    values[: len(odd), 0] = odd
    return Image.fromarray(values)


def sixteen_bit_rgb_png() -> bytes:
    """Write three channels of 16 bits, which Pillow reads and does not write."""
    pixels = np.random.default_rng(0).integers(0, 65536, (48, 40, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = (40).to_bytes(4, "big") + (48).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    length = len(content).to_bytes(4, "big")
    return length + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def ycck_jpeg() -> bytes:
    """Mark a CMYK JPEG as YCCK: the last byte of Adobe's segment names the colour transform."""
    content = bytearray(encoded(picture("CMYK"), "jpeg"))
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2
    return bytes(content)


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    return encoded(picture(), "jpeg", exif=exif)


def spoil_checksum(png: bytes, kind: bytes) -> bytes:
    start = png.index(kind) - 4
    checksum = start + 8 + int.from_bytes(png[start : start + 4], "big")
    return png[:checksum] + bytes(4) + png[checksum + 4 :]


def with_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words")
    return encoded(picture(), "png", pnginfo=text)


def text_bomb() -> bytes:
    """Hold 100 MB of text in 100 KB."""
    png, text = encoded(picture(), "png"), b"Comment\0\0" + zlib.compress(bytes(100_000_000))
    return png[:33] + chunk(b"zTXt", text) + png[33:]


def cut(content: bytes, *shares: float) -> tuple[bytes, ...]:
    return tuple(content[: int(share * len(content))] for share in shares)


def sized(width: int, height: int) -> bytes:
    return encoded(Image.new("L", (width, height), 7), "png")


@dataclass(frozen=True)
class Files:
    """Files of one row of the table: what is in each, and their suffix."""

    suffix: str
    contents: tuple[bytes, ...]


def files(suffix: str, *contents: bytes) -> Files:
    return Files(suffix, contents)


@cache
def rows() -> Mapping[str, Files]:
    """Make the files of every row that is about what a file holds."""
    jpeg, png = encoded(picture(), "jpeg"), encoded(picture(), "png")
    progressive = encoded(picture(), "jpeg", progressive=True)
    gif, webp = encoded(picture(), "gif"), encoded(picture(), "webp")
    lossless = encoded(picture(), "webp", lossless=True)
    bmp, ppm, tiff = (encoded(picture(), suffix) for suffix in ("bmp", "ppm", "tiff"))
    packed = encoded(picture(), "tiff", compression="tiff_lzw")
    noise = np.random.default_rng(0).bytes(5000)
    exif = Image.Exif()
    exif[0x010E] = "x" * 65_000
    return {
        "JPEG, also progressive or grey": files(
            ".jpg", jpeg, progressive, encoded(picture("L"), "jpeg")
        ),
        "PNG": files(".png", png),
        "GIF": files(".gif", gif),
        "WebP, also lossless": files(".webp", webp, lossless),
        "BMP": files(".bmp", bmp),
        "PPM": files(".ppm", ppm),
        "TIFF, also packed": files(".tif", tiff, packed),
        "an image with the wrong suffix": files(".jpg", png, gif, webp, bmp, ppm, tiff),
        "JPEG 2000": files(".jp2", encoded(picture(), "jpeg2000")),
        "AVIF": files(".avif", encoded(picture(), "avif")),
        "JPEG 2000 or AVIF under another suffix": files(
            ".jpg", encoded(picture(), "jpeg2000"), encoded(picture(), "avif")
        ),
        "an image without a suffix": files("", jpeg, png, gif, webp, bmp, ppm, tiff),
        "an image with the suffix of another file": files(".csv", jpeg, png),
        "text or noise without the suffix of an image": files(".txt", b"P6 or P5?\n", b"BM", noise),
        "HEIC or another format that Pillow here cannot read": files(
            ".heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + noise
        ),
        "DICOM without a suffix": files("", bytes(128) + b"DICM" + noise),
        "animated GIF": files(".gif", encoded(picture(), "gif", **frames())),
        "animated WebP": files(".webp", encoded(picture(), "webp", lossless=True, **frames())),
        "animated PNG": files(".png", encoded(picture(), "png", **frames())),
        "TIFF of several pages": files(".tiff", encoded(picture(), "tiff", **frames())),
        "16-bit grey PNG": files(".png", encoded(sixteen_bits(), "png")),
        "16-bit RGB PNG": files(".png", sixteen_bit_rgb_png()),
        "16-bit or 32-bit grey TIFF": files(
            ".tif",
            encoded(sixteen_bits(), "tiff"),
            encoded(sixteen_bits(">u2"), "tiff"),
            encoded(sixteen_bits("<i4"), "tiff"),
        ),
        "float TIFF": files(".tif", encoded(floats(), "tiff")),
        "float TIFF with values that are not finite": files(
            ".tif", encoded(floats(np.nan, np.inf, -np.inf), "tiff")
        ),
        "CMYK JPEG or TIFF": files(
            ".jpg", encoded(picture("CMYK"), "jpeg"), encoded(picture("CMYK"), "tiff")
        ),
        "YCCK JPEG": files(".jpg", ycck_jpeg()),
        "palette": files(".png", encoded(paletted(), "png"), encoded(paletted(), "gif")),
        "palette with transparency": files(
            ".png",
            encoded(paletted(), "png", transparency=3),
            encoded(paletted(), "png", transparency=bytes(range(0, 256, 16))),
            encoded(paletted(), "gif", transparency=3),
        ),
        "RGBA": files(".png", encoded(transparent(), "png"), encoded(transparent(), "webp")),
        "grey with alpha": files(".png", encoded(transparent().convert("LA"), "png")),
        "1-bit": files(".png", encoded(picture("1"), "png"), encoded(picture("1"), "tiff")),
        "JPEG that EXIF says to turn": files(".jpg", rotated_jpeg()),
        "1x1": files(".png", sized(1, 1)),
        "1x5000 or 5000x1": files(".png", sized(1, 5000), sized(5000, 1)),
        "more than 89 million pixels": files(".png", sized(9500, 9500)),
        "EXIF of 65 kB": files(".jpg", encoded(picture(), "jpeg", exif=exif)),
        "ICC profile of 1 MB": files(
            ".jpg",
            encoded(picture(), "jpeg", icc_profile=noise * 200),
            encoded(picture(), "png", icc_profile=noise * 200),
        ),
        "bytes after the image's end": files(".jpg", jpeg + noise, png + noise, gif + noise),
        "PNG without its last chunk": files(".png", png[:-12]),
        "PNG with a wrong checksum of its pixels": files(".png", spoil_checksum(png, b"IDAT")),
        "empty": files(".jpg", b""),
        "one byte": files(".jpg", b"\xff"),
        "text, HTML, zeros or noise": files(
            ".jpg", b"no pixels\n", b"<!DOCTYPE html><html></html>", bytes(5000), noise
        ),
        "JPEG cut off": files(
            ".jpg", *cut(jpeg, 0.7, 0.8), *cut(progressive, 0.6, 0.9), jpeg[:-1], jpeg[:-2]
        ),
        "PNG cut off": files(".png", *cut(png, 0.2, 0.5, 0.9)),
        "GIF cut off": files(".gif", *cut(gif, 0.7, 0.9)),
        "WebP cut off": files(".webp", *cut(webp, 0.3, 0.9), lossless[:-1], webp[:-1]),
        "BMP, PPM or TIFF cut off": files(".bmp", bmp[:-1], ppm[:-1], tiff[:-1], *cut(bmp, 0.5)),
        "packed TIFF cut off": files(".tif", *cut(packed, 0.5, 0.9), packed[:-1]),
        "cut off after its first bytes": files(".jpg", jpeg[:4], png[:4], gif[:20], webp[:8]),
        "cut off in its header": files(".jpg", jpeg[:100], png[:20], webp[:25], ppm[:4]),
        "PNG with a wrong checksum elsewhere": files(
            ".png", spoil_checksum(png, b"IHDR"), spoil_checksum(with_text(), b"tEXt")
        ),
        "more than 179 million pixels": files(".png", sized(13_500, 13_500)),
        "PNG with text that unpacks to 100 MB": files(".png", text_bomb()),
    }


def unreadable(path: Path) -> None:
    picture().save(path)
    path.chmod(0)


def linked(path: Path) -> None:
    kept = path.with_name(f".{path.name}")
    kept.write_bytes(encoded(picture(), "jpeg"))
    path.symlink_to(kept)


MAY_NOT_BE_READ = "a file that may not be read"

# Rows about where a file lies rather than what it holds.
PLACES: Mapping[str, Draw] = {
    "link to an image": linked,
    MAY_NOT_BE_READ: unreadable,
    "a folder called `x.jpg`": Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "links in a circle": lambda path: path.symlink_to(path.name),
    "a pipe (FIFO)": os.mkfifo,
}


def slug(row: str) -> str:
    return re.sub(r"\W+", "-", row).strip("-")


def lay(row: str, folder: Path) -> list[str]:
    """Put a row's files into `folder`, and give their names."""
    if row in PLACES:
        name = f"{slug(row)}.jpg"
        PLACES[row](folder / name)
        return [name]
    made = {
        f"{slug(row)}-{n}{rows()[row].suffix}": each for n, each in enumerate(rows()[row].contents)
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return list(made)


@dataclass(frozen=True)
class Fate:
    """What the page says becomes of a row's files, and how the reason begins if any."""

    what: str
    reason: str


def documented() -> dict[str, Fate]:
    lines = re.findall(rf"^\| (.+?) \| ({USED}|{SKIPPED}|{IGNORED}) \| (.*?) ?\|$", PAGE, re.M)
    return {row: Fate(what, note.strip("`")) for row, what, note in lines}


FATES = documented()


def those(what: str) -> list[str]:
    return [row for row, fate in FATES.items() if fate.what == what]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail instead of waiting for ever, for someone to write into a pipe say."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def extract(root: Path, tiny_clip: Path, cache_dir: Path, *options: str) -> int:
    model = f"local-dir:{tiny_clip}"
    arguments = ["--dataset", root, "--cache-dir", cache_dir, "--model", model, "--device", "cpu"]
    with within(120):
        return run(["extract", *map(str, arguments), *options])


@dataclass(frozen=True)
class Extracted:
    """An extraction of every row, with what the encoder was given.

    Attributes:
        folder: The folder of the images.
        names: The files of each row.
        rows: Each image's place in the cache, by name.
        reasons: Why an image was skipped, by name.
        pixels: What the encoder was given, by name.
        features: The client's file.
    """

    folder: Path
    names: Mapping[str, Sequence[str]]
    rows: Mapping[str, int]
    reasons: Mapping[str, str]
    pixels: Mapping[str, torch.Tensor]
    features: FeatureCache


@pytest.fixture(scope="module")
def extracted(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """Extract the files of all rows at once, decoded in a worker process."""
    place = tmp_path_factory.mktemp("bad-images")
    folder = place / "all" / "photo" / "odd"
    folder.mkdir(parents=True)
    names = {row: lay(row, folder) for row in FATES}
    given = []
    encode_image = open_clip.CLIP.encode_image

    def recorded(self: open_clip.CLIP, pixels: torch.Tensor, normalize: bool = False) -> Any:
        given.append(pixels.clone())
        return encode_image(self, pixels, normalize)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip.CLIP, "encode_image", recorded)
        assert extract(place / "all", tiny_clip, place / "caches", "--workers", "1") == 0
    (file,) = place.rglob("*.h5")
    features = read_cache(file)
    entry = json.loads((file.parent / "manifest.json").read_text())["clients"]["photo"]
    reasons = {item["id"]: item["reason"] for item in entry["skipped"]}
    order = sorted([*features.ids, *reasons])
    return Extracted(
        folder=folder,
        names=names,
        rows={Path(image).name: row for row, image in enumerate(features.ids)},
        reasons={Path(image).name: reason for image, reason in reasons.items()},
        pixels={Path(image).name: row for image, row in zip(order, torch.cat(given), strict=False)},
        features=features,
    )


@pytest.fixture(scope="module")
def theirs(tiny_clip: Path) -> Theirs:
    """Load the model and its transform with open_clip alone."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    return model.eval(), preprocess


def test_the_page_has_a_row_for_every_case_and_no_other() -> None:
    assert sorted(FATES) == sorted([*rows(), *PLACES])


@pytest.mark.filterwarnings("ignore")  # of Pillow, which open_clip lets through
@pytest.mark.parametrize("row", those(USED))
def test_a_file_that_is_used_has_the_vector_that_open_clip_s_own_transform_gives(
    extracted: Extracted, theirs: Theirs, row: str
) -> None:
    model, preprocess = theirs
    for name in extracted.names[row]:
        assert name not in extracted.reasons
        with Image.open(extracted.folder / name) as image:
            pixels = preprocess(image)
        assert torch.equal(extracted.pixels[name], pixels)
        with torch.inference_mode():
            vector = model.encode_image(pixels[None])[0].numpy()
        ours = extracted.features.image_features[extracted.rows[name]]
        np.testing.assert_allclose(ours, vector, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", those(SKIPPED))
def test_a_file_that_is_skipped_is_in_the_manifest_with_its_reason(
    extracted: Extracted, row: str
) -> None:
    for name in extracted.names[row]:
        if row == MAY_NOT_BE_READ and os.access(extracted.folder / name, os.R_OK):
            pytest.skip("this user may read every file")
        assert extracted.reasons[name].startswith(FATES[row].reason)
        assert extracted.reasons[name].isprintable()
        assert name not in extracted.rows


@pytest.mark.parametrize("row", those(IGNORED))
def test_what_is_ignored_is_no_image(extracted: Extracted, row: str) -> None:
    for name in extracted.names[row]:
        assert os.path.lexists(extracted.folder / name)
        assert name not in extracted.rows
        assert name not in extracted.reasons


@pytest.mark.parametrize("row", those(SKIPPED))
def test_strict_makes_a_skipped_file_an_error_and_finishes_nothing(
    tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    folder = tmp_path / "strict" / "photo" / "odd"
    folder.mkdir(parents=True)
    picture().save(folder / "good.png")
    names = lay(row, folder)
    if row == MAY_NOT_BE_READ and os.access(folder / names[0], os.R_OK):
        pytest.skip("this user may read every file")
    options = ("--strict", "--workers", "0")
    assert extract(tmp_path / "strict", tiny_clip, tmp_path / "caches", *options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: photo/odd/{names[0]}: {FATES[row].reason}")
    assert (f", and {len(names) - 1} more; fix" in last) == (len(names) > 1)
    assert list(tmp_path.rglob("*.h5")) == []


def test_strict_has_nothing_against_odd_images_that_can_be_used(
    tmp_path: Path, tiny_clip: Path
) -> None:
    folder = tmp_path / "strict" / "photo" / "odd"
    folder.mkdir(parents=True)
    names = [name for row in those(USED) for name in lay(row, folder)]
    for row in those(IGNORED):
        lay(row, folder)
    assert extract(tmp_path / "strict", tiny_clip, tmp_path / "caches", "--strict") == 0
    (file,) = tmp_path.rglob("*.h5")
    assert len(read_cache(file).ids) == len(names)


def test_the_faster_resizer_uses_and_skips_the_same_files_for_the_same_reasons(
    extracted: Extracted, tiny_clip: Path, tmp_path: Path
) -> None:
    root = extracted.folder.parents[1]
    assert extract(root, tiny_clip, tmp_path, "--resizer", "torchvision") == 0
    (file,) = tmp_path.rglob("*.h5")
    entry = json.loads((file.parent / "manifest.json").read_text())["clients"]["photo"]
    assert {Path(image).name: row for row, image in enumerate(read_cache(file).ids)} == (
        extracted.rows
    )
    assert {Path(item["id"]).name: item["reason"] for item in entry["skipped"]} == (
        extracted.reasons
    )


def test_an_orientation_in_exif_changes_nothing(extracted: Extracted) -> None:
    (turned,) = extracted.names["JPEG that EXIF says to turn"]
    upright = extracted.names["JPEG, also progressive or grey"][0]
    assert torch.equal(extracted.pixels[turned], extracted.pixels[upright])


@pytest.mark.parametrize("kind", ["animated WebP", "animated PNG", "TIFF of several pages"])
def test_the_first_frame_is_the_image(extracted: Extracted, kind: str) -> None:
    (animated,) = extracted.names[kind]
    (still,) = extracted.names["PNG"]
    assert torch.equal(extracted.pixels[animated], extracted.pixels[still])


def test_transparency_of_a_palette_is_dropped(extracted: Extracted) -> None:
    plain = extracted.names["palette"][0]
    for clear in extracted.names["palette with transparency"]:
        assert torch.equal(extracted.pixels[clear], extracted.pixels[plain])


def test_a_palette_is_resized_by_its_nearest_neighbours(
    extracted: Extracted, theirs: Theirs
) -> None:
    smooth = theirs[1](paletted().convert("RGB"))
    nearest = paletted().convert("RGB").resize((32, 38), Image.Resampling.NEAREST)
    pixels = extracted.pixels[extracted.names["palette"][0]]
    assert torch.equal(pixels, theirs[1](nearest))
    assert not torch.equal(pixels, smooth)


def test_more_than_eight_bits_are_clipped_and_not_scaled(
    extracted: Extracted, theirs: Theirs
) -> None:
    (grey,) = extracted.names["16-bit grey PNG"]
    white = theirs[1](Image.new("RGB", (40, 48), "white"))
    # All but the first of 256 parts of the range lie above 255.
    assert torch.equal(extracted.pixels[grey][:, 1:], white[:, 1:])
