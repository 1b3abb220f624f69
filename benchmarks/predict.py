"""Images per second and memory of `predict` beside `extract`, over many image files.

    uv run python benchmarks/predict.py --images 10000

Both stages get the same images, drawn once, and the tiny CLIP that comes with the package; each
runs in a process of its own, one after the other, so nothing else should run on the machine. The
rate of `extract` is the one that it prints, of `predict` that of its last progress line, so neither
includes the start-up.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

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


def fedclip(place: Path, *arguments: str) -> tuple[str, str, float]:
    """Run a command; return its output, its errors and its largest resident set in MB."""
    command = [sys.executable, "-m", "fedclip", *arguments]
    with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
        process = subprocess.Popen(command, cwd=place, stdout=out, stderr=err)  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        err.seek(0)
        if status:
            raise SystemExit(err.read())
        return out.read(), err.read(), usage.ru_maxrss / 1024


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    wanted = parser.parse_args()
    tiny = f"local-dir:{Path(__file__).parents[1] / 'extract' / 'demo' / 'tinyclip'}"
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        draw(place / "images", wanted.images)
        out, _, memory = fedclip(
            place, "extract", "--dataset", "images", "--model", tiny, "--device", "cpu"
        )
        found = re.search(r"\(([\d.]+) images/s\)", out)
        assert found is not None
        extracting = float(found[1])
        print(f"extract    {wanted.images} images, {extracting:.1f} images/s, {memory:.0f} MB")
        fedclip(place, "federate", "--rounds", "1", "--name", "one", "--target", "none")
        for share in (10, 1):
            images = place / "images"
            if share > 1:
                images = place / "few"
                for path in sorted((place / "images").rglob("*.jpg"))[::share]:
                    link = images / path.relative_to(place / "images")
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.hardlink_to(path)
            _, err, memory = fedclip(
                place,
                *("predict", "--run", "one", "--format", "csv", "--device", "cpu"),
                str(images),
            )
            rates = re.findall(r"([\d.]+) images/s", err)
            rate = float(rates[-1])
            print(
                f"predict    {wanted.images // share} images, {rate:.1f} images/s "
                f"({rate / extracting:.2f} of extract's), {memory:.0f} MB"
            )


if __name__ == "__main__":
    main()
