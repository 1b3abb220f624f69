"""Worker processes where shared memory is full, as in a container with 64 MB of it."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

MakeImages = Callable[..., Path]

# A shared memory of 64 kB, of which `head` takes nothing, or all.
SMALL = """
mount -t tmpfs -o size=64k tmpfs /dev/shm && { [ "$1" = small ] || head -c 1m /dev/zero >/dev/shm/f
2>/dev/null; } ; shift; exec "$@"
""".replace("\n", " ")

PREFIX = ("unshare", "--map-root-user", "--mount", "sh", "-c", SMALL, "sh")


@pytest.fixture(scope="module", autouse=True)
def _can_mount() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    if subprocess.run([*PREFIX, "small", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a process mount a file system of its own")


def files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.h5")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "warning"),
    [
        ("small", "shared memory is full, so images come through a pipe, which is slower; "),
        ("none", "shared memory is full, so threads decode the images in place of processes; "),
    ],
)
def test_the_work_is_done_to_the_same_bytes(
    make_images: MakeImages,
    tiny_clip: Path,
    tmp_path: Path,
    hangs: int,
    room: str,
    warning: str,
) -> None:
    root = make_images(images=8)
    command = [
        *(sys.executable, "-m", "fedclip", "extract", "--dataset", str(root)),
        *("--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--batch-size", "16"),
    ]

    def extract(*words: str) -> list[str]:
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, timeout=hangs, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return [line for line in done.stderr.splitlines() if line.startswith("warning: ")]

    assert extract(*command, "--workers", "0", "--cache-dir", "usual") == []
    full = extract(*PREFIX, room, *command, "--workers", "2", "--cache-dir", "full")
    assert full == [
        f"warning: {warning}free /dev/shm, or give the container more (docker run --shm-size 8g)"
    ]
    assert files(tmp_path / "full") == files(tmp_path / "usual")
