"""Images per second and memory of `predict` beside `extract`, over many image files.

    uv run python benchmarks/predict.py --images 10000

Both stages get the same images, drawn once, and the tiny CLIP that comes with the package; each
runs in a process of its own, in turns, so nothing else should run on the machine. The rate of
`extract` is the one that it prints, of `predict` that of its last progress line, so neither
includes the start-up; the seconds of CPU time are those of whole processes, which other work on
the machine changes less. Then `predict` runs once over a tenth of the images, for its memory.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")


def draw(folder: Path, number: int) -> None:
    """Save noise of the usual size as JPEGs, in two domains of two classes."""
    random = np.random.default_rng(0)
    for index in range(number):
        place = folder / ("art", "photo")[index % 2] / CLASSES[index // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((227, 227))
        image.save(place / f"{index:06d}.jpg")


class Done(NamedTuple):
    """A command that has run: what it printed, its CPU seconds and its largest memory in MB."""

    out: str
    err: str
    cpu: float
    memory: float


def fedclip(place: Path, *arguments: str) -> Done:
    """Run a command."""
    command = [sys.executable, "-m", "fedclip", *arguments, "--device", "cpu"]
    with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
        process = subprocess.Popen(command, cwd=place, stdout=out, stderr=err)  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        err.seek(0)
        if status:
            raise SystemExit(err.read())
        cpu = usage.ru_utime + usage.ru_stime
        return Done(out.read(), err.read(), cpu, usage.ru_maxrss / 1024)


def rate(text: str) -> float:
    """Return the last rate that a command printed."""
    return float(re.findall(r"([\d.]+) images/s", text)[-1])


def main() -> None:
    """Measure, and print a line for each command and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    wanted = parser.parse_args()
    tiny = f"local-dir:{Path(__file__).parents[1] / 'extract' / 'demo' / 'tinyclip'}"
    extract = ("extract", "--dataset", "images", "--model", tiny, "--force")
    predict = ("predict", "--run", "one", "--format", "csv")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        draw(place / "images", wanted.images)
        for path in sorted((place / "images").rglob("*.jpg"))[::10]:
            link = place / "few" / path.relative_to(place / "images")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)
        fedclip(place, *extract)
        fedclip(place, "federate", "--rounds", "1", "--name", "one", "--target", "none")
        ratios = []
        for _ in range(wanted.repeat):
            extracted = fedclip(place, *extract)
            predicted = fedclip(place, *predict, "images")
            rates = rate(extracted.out), rate(predicted.err)
            ratios.append(rates[1] / rates[0])
            for name, done, each in zip(
                ("extract", "predict"), (extracted, predicted), rates, strict=True
            ):
                print(
                    f"{name}    {wanted.images} images, {each:.1f} images/s, {done.cpu:.1f} s of "
                    f"CPU, {done.memory:.0f} MB",
                    flush=True,
                )
        few = fedclip(place, *predict, "few")
        print(f"predict    {wanted.images // 10} images, {few.memory:.0f} MB")
        print(f"predict's rate over extract's: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
