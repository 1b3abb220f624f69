"""Measures how close extraction comes to the speed that the machine allows.

``uv run python benchmarks/extract.py`` measures, in one run and on the same images: the
bare encoder on tensors in memory, the bare decoding and transform, and the extraction
end to end. On a CPU encoder and decoder share the cores, so the bound is the number of
cores over the sum of their CPU seconds per image. On a GPU it is the slower of the two:
the bare encoder, or the bare decoding in as many processes as the extraction uses.
``--images FOLDER`` adds a folder of ``<domain>/<class>/<image>`` to the JPEGs that it makes.
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
from torch.utils.flop_counter import FlopCounterMode

from fedclip.cache.common.device import resolve_device
from fedclip.cache.common.progress import Progress, show_progress
from fedclip.extract.datasets.base import FileSource
from fedclip.extract.encoders.openclip import OpenClipEncoder, load_encoder
from fedclip.extract.encoders.prompts import DEFAULT_TEMPLATE
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.encoding.job import default_batch_size, default_workers
from fedclip.extract.encoding.loader import load_batches
from fedclip.extract.encoding.worker import keep_freed_memory
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Request

SIZES = ((500, 375), (1500, 1100))
BATCHES = 8


@dataclass(frozen=True)
class Cost:
    """Seconds per image: of the wall clock, and of all cores together."""

    wall: float
    cpu: float


def pixels_of(encoder: OpenClipEncoder) -> torch.Tensor:
    """Make a batch of noise in memory."""
    return torch.randn(default_batch_size(encoder.device), *encoder.blank.shape)


def measure_encoder(encoder: OpenClipEncoder) -> Cost:
    """Encode batches of noise that are already in the device's memory."""
    pixels = pixels_of(encoder).to(encoder.device)
    encoder.launch(pixels).numpy()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(BATCHES):
        launched = encoder.launch(pixels)
    launched.numpy()
    images = BATCHES * len(pixels)
    return Cost((time.perf_counter() - wall) / images, (time.process_time() - cpu) / images)


def measure_decoder(encoder: OpenClipEncoder, paths: Sequence[Path]) -> Cost:
    """Decode and transform files in this process, with one thread like a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    for path in paths:
        encoder.decode(path.read_bytes())
    cost = Cost((time.perf_counter() - wall) / len(paths), (time.process_time() - cpu) / len(paths))
    torch.set_num_threads(threads)
    return cost


def measure_loading(encoder: OpenClipEncoder, paths: Sequence[Path]) -> float:
    """Return how many images/s worker processes decode if nothing is done with them."""
    batch_size, workers = default_batch_size(encoder.device), default_workers(encoder.device)
    start = time.perf_counter()
    sources = [FileSource(path) for path in paths]
    for _ in load_batches(sources, encoder.decode, encoder.blank, batch_size, workers):
        pass
    return len(paths) / (time.perf_counter() - start)


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


def row(name: str, root: Path, encoder: OpenClipEncoder, work: Path, progress: Progress) -> str:
    """Measure one folder of images, and format a line of the table.

    The bare encoder is measured before and after the extraction, since the speed of a
    machine drifts.
    """
    before = measure_encoder(encoder)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    decoding = measure_decoder(encoder, paths[:: max(1, len(paths) // 128)])
    request = Request(
        dataset=str(root),
        encoder=encoder.name,
        templates=(DEFAULT_TEMPLATE,),
        data_dir=work,
        cache_dir=work / "caches" / name,
        name="bench",
        device=str(encoder.device),
    )
    extraction = extract(request, progress)
    after = measure_encoder(encoder)
    bare = Cost((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2)
    if encoder.device.type == "cpu":
        cores = os.cpu_count() or 1
        loading, bound = cores / decoding.cpu, cores / (bare.cpu + decoding.cpu)
    else:
        loading = measure_loading(encoder, paths)
        bound = min(1 / bare.wall, loading)
    rate = extraction.encoded / extraction.seconds
    spent = ", ".join(f"{seconds:.1f}" for seconds in extraction.spent.values())
    print(f"{name}: {extraction.seconds:.1f} s, of these {spent} ({', '.join(extraction.spent)})")
    return (
        f"| {name} | {len(paths)} | {1 / bare.wall:.1f} | {loading:.0f} | "
        f"{bound:.1f} | {rate:.1f} | {rate / bound:.2f} | {teraflops(encoder, rate):.2f} |"
    )


def teraflops(encoder: OpenClipEncoder, rate: float) -> float:
    """Convert images/s to the encoder's multiplications and additions, in 10^12 per second."""
    torch.backends.mha.set_fastpath_enabled(False)  # which the counter does not know
    with FlopCounterMode(display=False) as counter:
        encoder.launch(pixels_of(encoder)[:1]).numpy()
    torch.backends.mha.set_fastpath_enabled(True)
    return float(rate * counter.get_total_flops() / 1e12)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Extraction against what the machine allows.")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--resizer", default="pillow")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=768, help="number of JPEGs of each size")
    options = parser.parse_args()
    name = EncoderName.of(
        options.model, "random", options.precision, options.resizer, compiled=options.compile
    )
    encoder = load_encoder(name, resolve_device(options.device))
    if encoder.device.type == "cpu":
        keep_freed_memory()  # as an extraction does
    with tempfile.TemporaryDirectory() as folder, show_progress() as progress:
        work = Path(folder)
        roots = {
            f"JPEG {width}x{height}": make_jpegs(work / f"{width}", (width, height), options.count)
            for width, height in SIZES
        }
        if options.images is not None:
            roots = {options.images.name: options.images, **roots}
        lines = [row(name, root, encoder, work, progress) for name, root in roots.items()]
    headings = (
        "images",
        "number",
        "bare encoder /s",
        "bare decoding /s",
        "bound /s",
        "extraction /s",
        "share",
        "TFLOP/s",
    )
    print(f"| {' | '.join(headings)} |")
    print("|---" * len(headings) + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
