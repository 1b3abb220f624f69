"""Caches, images and an encoder small enough to be made for every test run."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from fedclip.cache import CacheFolder, EncoderFacts, FeatureCache, write_cache
from fedclip.cache.schema import content_digest
from fedclip.cli import run

# Idle threads of OpenMP wait without spinning, as they would take the time of those at work where
# several processes share the cores. Read when torch is imported, in the tests' own processes too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A test is right however slow the machine is, and draws the same examples in every run.
settings.register_profile("fedclip", deadline=None, derandomize=True)
settings.load_profile("fedclip")

# Seconds that only a hang takes, however slow the machine is. No test has another limit.
HANGS = 1800

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

MakeFeatures = Callable[..., FeatureCache]
MakeCache = Callable[..., Path]
MakeImages = Callable[..., Path]
Fedclip = Callable[..., subprocess.CompletedProcess[str]]
Records = Callable[[Path], dict[str, Any]]
Refusal = Callable[..., str]
WaitUntil = Callable[[Callable[[], bool]], None]

# A whole CLIP in miniature: 32x32 images, 16 features, the real tokenizer.
TINY_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.3, 0.25]},
}


def features(
    client: str = "photo",
    rows: int = 20,
    width: int = 8,
    classes: Sequence[str] = ("cat", "dog", "fish"),
    templates: Sequence[str] = ("a picture of a {}",),
    seed: int = 0,
    **changes: Any,
) -> FeatureCache:
    """Draw a client's features around its class texts, so that there is something to learn."""
    random = np.random.default_rng([seed, *client.encode()])
    shape = (len(classes), max(1, len(templates)), width)
    texts = np.random.default_rng(seed).normal(size=shape)
    labels = np.arange(rows) % len(classes)
    images = texts[labels, 0] + 1.5 * random.normal(size=(rows, width))
    values: dict[str, Any] = {
        "dataset": "tiny",
        "client": client,
        "encoder": EncoderFacts(
            shared={"library": "test"}, about={"model": "drawn", "parameters": 1_000_000}
        ),
        "logit_scale": 20.0,
        "normalized": False,
        "image_features": images.astype(np.float32),
        "labels": labels.astype(np.int32),
        "ids": tuple(f"{client}/{index:04d}.png" for index in range(rows)),
        "digests": np.stack(
            [np.frombuffer(content_digest(row.tobytes()), np.uint8) for row in images]
        ),
        "class_names": tuple(classes),
        "templates": tuple(templates),
        "text_features": (texts if templates else texts[:, :0, :0]).astype(np.float32),
    }
    return FeatureCache(**{**values, **changes})


@pytest.fixture
def make_features() -> MakeFeatures:
    """Give the function that draws a client's features."""
    return features


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    """Give a function that writes clients below ``tmp_path/caches`` and returns that folder."""

    def make(clients: Mapping[str, int] | Sequence[FeatureCache], name: str = "tiny/drawn") -> Path:
        folder = tmp_path / "caches" / name
        folder.mkdir(parents=True, exist_ok=True)
        caches = (
            [features(client, rows) for client, rows in clients.items()]
            if isinstance(clients, Mapping)
            else clients
        )
        for cache in caches:
            write_cache(cache, CacheFolder(folder).file(cache.client))
        return tmp_path / "caches"

    return make


def draw_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48)) -> None:
    """Save noise as an image of `size` (width, height) in the format of its suffix."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """Give a function that fills ``tmp_path/<name>`` with <domain>/<class>/<image>."""

    def make(
        name: str = "pets",
        domains: Sequence[str] = ("photo", "sketch"),
        classes: Sequence[str] = ("cat", "big_dog"),
        images: int = 3,
    ) -> Path:
        for d, domain in enumerate(domains):
            for c, class_name in enumerate(classes):
                for index in range(images):
                    path = tmp_path / name / domain / class_name / f"{index:02d}.png"
                    draw_image(path, seed=100 * d + 10 * c + index)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny CLIP with seeded weights as open_clip's ``local-dir:`` loads it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / "tinyclip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CONFIG))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


# What the tiny BERT reads.
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "phone", "a")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny BERT without weights, of 16 features and 8 tokens, as transformers does."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=8)
    tokenizer.save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def fedclip(tmp_path: Path) -> Fedclip:
    """Give a function that runs ``python -m fedclip`` in ``tmp_path`` as a user would."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("FEDCLIP_")
        }
        return subprocess.run(
            [sys.executable, "-m", "fedclip", *map(str, arguments)],
            cwd=tmp_path,
            env={**environment, "HF_HUB_OFFLINE": "1", **options.pop("env", {})},
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def hangs() -> int:
    """Give the seconds after which a process hangs."""
    return HANGS


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """Give a function that waits until a condition holds."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + HANGS
        while True:
            with suppress(FileNotFoundError):  # a folder can go while it is listed
                if condition():
                    return
            assert time.monotonic() < end, "hangs"
            time.sleep(0.002)

    return wait


@pytest.fixture
def shared_data() -> Path:
    """Give the folder of real data, or skip where it is not beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data is not here")
    return SHARED_DATA


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, and give it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Give a function that runs a command line that must be refused, and gives the one line."""

    def refuse(*arguments: str) -> str:
        capsys.readouterr()
        assert run(arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line]
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        return errors[0]

    return refuse


@pytest.fixture
def records() -> Records:
    """Give a function that reads everything that runs left in a folder, timings apart."""

    def read(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = str(path.relative_to(folder))
            if path.suffix == ".json":
                found[name] = json.loads(path.read_text())
                found[name].pop("seconds_per_round", None)
            elif path.suffix == ".jsonl":
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                found[name] = [{**line, "seconds": None} for line in lines]
            else:
                found[name] = path.read_bytes()
        return found

    return read


@dataclass(frozen=True)
class Demo:
    """The demo's images and cache, and a run `demo` over it with every target."""

    place: Path

    @property
    def images(self) -> Path:
        return self.place / "data" / "demo"

    @property
    def run(self) -> Path:
        return self.place / "runs" / "demo"

    def command(self, *arguments: object) -> list[str]:
        """Complete a command line with the places of the demo."""
        name, *rest = map(str, arguments)
        return [name, *rest, "--runs-dir", str(self.place / "runs")]


# What ``fedclip demo`` prints where every connection is refused.
DEMO = """
import socket, sys
from fedclip.cli import run

connect = socket.socket.connect

def refuse(self, *arguments):
    # Workers hand over their batches through Unix sockets.
    if getattr(self, "family", None) != socket.AF_UNIX:
        raise AssertionError("the network was touched")
    return connect(self, *arguments)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
sys.exit(run(["demo"]))
"""


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which ``fedclip demo`` has run twice, to be read only.

    What it printed is in ``first.txt`` and ``again.txt``; ``first`` has the runs of the first time.
    The processes that run tests share the folder.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "demo"
    with (shared / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "again.txt").exists():
            folder.mkdir(exist_ok=True)
            for name in ("first", "again"):
                done = subprocess.run(
                    [sys.executable, "-c", DEMO],
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=HANGS,
                )
                assert done.returncode == 0, done.stderr
                if name == "first":
                    shutil.copytree(folder / "runs", folder / "first")
                (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
    return folder


@pytest.fixture(scope="session")
def demo(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Copy the demo's images and cache, and federate over them."""
    place = tmp_path_factory.mktemp("copy") / "demo"
    shutil.copytree(demo_folder, place, ignore=shutil.ignore_patterns("runs", "first"))
    settings = ["--preset", "tuned", "--rounds", "5", "--name", "demo"]
    caches = ["--cache-dir", str(place / "caches"), "--runs-dir", str(place / "runs")]
    assert run(["federate", *settings, *caches]) == 0
    return Demo(place)
