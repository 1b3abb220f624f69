"""What an extraction needs of memory does not grow with the number of images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Two peaks in bytes: the process's own, and its worker's. The first is not asked of getrusage,
# which counts what the test's process had before it became this one.
MEASURED = """
import resource, sys
from fedclip.cli import run
code = run(sys.argv[1:])
with open("/proc/self/status") as file:
    own = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(1024 * own, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def draw_many(root: Path, count: int) -> None:
    """Make `count` images of 8x8, each unlike the others, in one domain."""
    folder = root / "photo" / "noise"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8 * 8 * 3), dtype=np.uint8)
    for index, row in enumerate(pixels):
        (folder / f"{index:05d}.ppm").write_bytes(b"P6 8 8 255\n" + row.tobytes())


def peak(place: Path, count: int, hangs: int, *model: str) -> int:
    """Extract `count` images with one worker; the bytes that the two processes took at most."""
    draw_many(place / f"{count}", count)
    done = subprocess.run(
        [
            *(sys.executable, "-c", MEASURED, "extract", "--dataset", f"{place / str(count)}"),
            *("--cache-dir", f"{place / 'caches'}", "--device", "cpu", "--workers", "1"),
            *("--batch-size", "64", "--model", *model),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=hangs,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f" {count} rows of " in done.stdout
    shutil.rmtree(place / f"{count}")
    return sum(map(int, done.stdout.split()[-2:]))


@pytest.mark.slow
def test_ten_times_the_images_take_the_memory_of_the_tenth(
    tiny_clip: Path, tmp_path: Path, hangs: int
) -> None:
    few, many = (
        peak(tmp_path, count, hangs, f"local-dir:{tiny_clip}") for count in (2_000, 20_000)
    )
    assert many < 1.1 * few


@pytest.mark.slow
def test_an_image_costs_a_copy_of_its_vector_and_little_else(
    tiny_clip: Path, tmp_path: Path, hangs: int
) -> None:
    # As wide as ViT-B/32: a client's vectors are gathered before its file is written.
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 512
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "open_clip_config.json").write_text(json.dumps(config))
    model = (f"local-dir:{tmp_path / 'wide'}", "--pretrained", "random")
    few, many = (peak(tmp_path, count, hangs, *model) for count in (2_000, 20_000))
    assert (many - few) / 18_000 < 512 * 4 + 4_000
