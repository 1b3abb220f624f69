"""How close extraction comes to what the cores allow.

``uv run python benchmarks/extract.py`` measures, in one run and on the same images: the
bare encoder on tensors in memory, the bare decoding and transform, and the extraction
end to end. Encoder and decoder share the cores of a CPU, so the bound is the number of
cores over the sum of their CPU seconds an image. ``--images FOLDER`` adds a folder of
``<domain>/<class>/<image>`` to the JPEGs that it makes.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedclip.cache.device import resolve_device
from fedclip.cache.report import Report, open_report
from fedclip.extract.encoders import Encoder, load_encoder
from fedclip.extract.images import decode
from fedclip.extract.names import EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.prompts import DEFAULT_TEMPLATE
from fedclip.extract.request import DEFAULT_BATCH_SIZE, Request

SIZES = ((500, 375), (1500, 1100))


@dataclass(frozen=True)
class Cost:
    """Seconds an image: of the wall clock, and of all cores together."""

    wall: float
    cpu: float


def measure_encoder(encoder: Encoder, batches: int) -> Cost:
    """Encode batches of noise that lie in memory."""
    pixels = torch.randn(DEFAULT_BATCH_SIZE, *encoder.pixel_shape)
    encoder.encode_images(pixels)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        encoder.encode_images(pixels)
    images = batches * DEFAULT_BATCH_SIZE
    return Cost((time.perf_counter() - wall) / images, (time.process_time() - cpu) / images)


def measure_decoder(encoder: Encoder, paths: Sequence[Path]) -> Cost:
    """Decode and transform files in this process, with one thread as a worker does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    for path in paths:
        decode(path.read_bytes(), encoder.transform)
    cost = Cost((time.perf_counter() - wall) / len(paths), (time.process_time() - cpu) / len(paths))
    torch.set_num_threads(threads)
    return cost


def make_jpegs(root: Path, size: tuple[int, int], images: int) -> Path:
    """Save smooth random pictures of `size`, which decode like photographs."""
    random = np.random.default_rng(0)
    for index in range(images):
        coarse = random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        path = root / "made" / "noise" / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
    return root


def row(name: str, root: Path, encoder: Encoder, work: Path, report: Report) -> str:
    """Measure one folder of images, and format a line of the table.

    The bare encoder is measured before and after the extraction, as the speed of a
    machine drifts.
    """
    before = measure_encoder(encoder, 4)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    decoding = measure_decoder(encoder, paths[:: max(1, len(paths) // 128)])
    request = Request(
        str(root), encoder.name, (DEFAULT_TEMPLATE,), work, work / "caches" / name, name="bench"
    )
    extraction = extract(request, report)
    after = measure_encoder(encoder, 4)
    bare = Cost((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2)
    rate = extraction.encoded / extraction.seconds
    cores = os.cpu_count() or 1
    bound = cores / (bare.cpu + decoding.cpu)
    return (
        f"| {name} | {len(paths)} | {1 / bare.wall:.1f} | {cores / decoding.cpu:.0f} | "
        f"{bound:.1f} | {rate:.1f} | {rate / bound:.2f} |"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Extraction against what the cores allow.")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=768, help="JPEGs to make of each size")
    options = parser.parse_args()
    encoder = load_encoder(EncoderName.of(options.model, "random", "fp32"), resolve_device("cpu"))
    with tempfile.TemporaryDirectory() as folder, open_report() as report:
        work = Path(folder)
        roots = {
            f"JPEG {width}x{height}": make_jpegs(work / f"{width}", (width, height), options.count)
            for width, height in SIZES
        }
        if options.images is not None:
            roots = {options.images.name: options.images, **roots}
        lines = [row(name, root, encoder, work, report) for name, root in roots.items()]
    headings = (
        "images",
        "number",
        "bare encoder /s",
        "bare decoding /s",
        "bound /s",
        "extraction /s",
    )
    print(f"| {' | '.join(headings)} | share |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
