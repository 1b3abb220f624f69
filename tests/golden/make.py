"""Makes the files of this folder; run with fedclip 0.1.0 at commit 8b18a3f, and no other.

The files say what that version wrote and computed, so that a later one can be held to it:

    git worktree add ../fedclip-0.1.0 8b18a3f && cd ../fedclip-0.1.0
    uv run python <clone>/tests/golden/make.py <clone>/tests/golden

What is fedclip's is imported by name, as a later version need not have it.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.numpy import load_file

VERSION = "0.1.0"

# Stands in files for every folder of the machine that made them; there is no such folder.
GONE = "/gone"

# The drawn features: three domains, five classes, two templates, raw norms of about 10.
WIDTH = 12
TOLD = 7  # Columns that tell classes apart; the others are noise, which an adapter can turn down.
ROWS = {"cartoon": 44, "photo": 47, "sketch": 45}
CLASSES = ("bird", "boat", "chair", "house", "tree")
TEMPLATES = ("a picture of a {}", "a sketch of a {}")
ENCODER = {
    "library": "numpy",
    "model": "drawn",
    "pretrained": "none",
    "parameters": 1_000_000,
    "weights_sha256": "0" * 64,
}

# The drawn images: two domains, three classes, two of each.
SIDE = 32
DOMAINS = ("outline", "solid")
SHAPES = ("circle", "square", "triangle")
IMAGES = 2

BASE = ("--cache", "golden", "--rounds", "6", "--seed", "3", "--device", "cpu")
LEARN = ("--lr", "0.02", "--weight-decay", "0", "--batch-size", "8")
ONE = ("--target", "photo")
STRATEGIES = (
    *("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"),
    *("fedrep", "ditto", "local", "centralized"),
)
ADAPTERS = (
    *("attention", "attention-text", "attention-both", "linear", "residual"),
    *("taskres", "scale", "linear-probe", "none"),
)
CASES: Mapping[str, Sequence[str]] = {
    "paper": (),
    **{f"strategy-{name}": ("--strategy", name, *LEARN) for name in STRATEGIES},
    "strategy-scaffold": ("--strategy", "scaffold", "--batch-size", "8"),
    **{f"adapter-{name}": ("--adapter", name, *ONE, *LEARN) for name in ADAPTERS},
    "adapter-cache-model": ("--adapter", "cache-model", "--strategy", "local", *ONE),
    "one-scaffold": ("--strategy", "scaffold", *ONE, "--batch-size", "8"),
    "one-ditto": ("--strategy", "ditto", *ONE, *LEARN),
    "one-fedadam": ("--strategy", "fedadam", *ONE, *LEARN),
    "tuned": ("--preset", "tuned", *ONE),
    "loss-class": ("--loss", "class", *ONE, *LEARN),
    "no-target": ("--target", "none", *LEARN),
    "dealt": ("--clients", "2", "--alpha", "0.5", *ONE, *LEARN),
    "dealt-scaffold": (
        *("--strategy", "scaffold", "--clients", "2", "--alpha", "0.5"),
        *("--participation", "0.5", *ONE, "--batch-size", "8"),
    ),
    "dealt-ditto": (
        *("--strategy", "ditto", "--clients", "2", "--alpha", "0.5"),
        *("--participation", "0.5", *ONE, *LEARN),
    ),
    "dealt-fedrep": (
        *("--strategy", "fedrep", "--clients", "2", "--alpha", "0.5"),
        *("--participation", "0.5", *ONE, *LEARN),
    ),
    "participation-share": ("--participation", "0.5", *ONE, *LEARN),
    "participation-number": ("--participation", "2", "--target", "none", *LEARN),
    "eval-every": ("--eval-every", "2", *ONE, *LEARN),
    "uniform": ("--weighting", "uniform", *ONE, *LEARN),
    "sgd": ("--optimizer", "sgd", *ONE, "--batch-size", "8"),
    "prompt-second": ("--prompt", TEMPLATES[1], *ONE, *LEARN),
    "prompt-several": ("--prompt", TEMPLATES[1], "--prompt", TEMPLATES[0], *ONE, *LEARN),
    "prompt-all": ("--prompt", "all", *ONE, *LEARN),
    "feature-norm": ("--feature-norm", "5", *ONE, *LEARN),
    "data-fraction": ("--data-fraction", "0.5", *ONE, *LEARN),
    "local-epochs": ("--local-epochs", "2", *ONE, *LEARN),
    "ratio": ("--adapter", "residual", "--ratio", "0.5", *ONE, *LEARN),
    "mu": ("--strategy", "fedprox", "--mu", "0.5", *ONE, *LEARN),
    "lambda": ("--strategy", "ditto", "--lambda", "0.1", *ONE, *LEARN),
    "server": (
        *("--strategy", "fedyogi", "--server-lr", "0.05", "--server-momentum", "0.5"),
        *("--server-beta2", "0.9", "--tau", "0.01", *ONE, *LEARN),
    ),
    "failed": ("--adapter", "linear", "--lr", "1e38", *ONE, "--batch-size", "8"),
}

# Cases whose folders are kept whole, under the names that they have by default.
KEPT = ("strategy-fedavg", "one-ditto")

# Runs that are ended before their fourth round by Ctrl-C, and the case that each is then to match.
INTERRUPTED = {
    "fedavg-interrupted": "adapter-attention",
    "scaffold-interrupted": "one-scaffold",
    "ditto-interrupted": "one-ditto",
    "fedadam-interrupted": "one-fedadam",
}

# One that dies before its sixth round, and was saved after its third.
KILLED = {"fedavg-killed": "adapter-attention"}

ABLATION = (
    *("--set", "lr=5e-5,3e-4,2e-2", "--set", "strategy=fedavg,ditto", "--seeds", "2"),
    *("--cache", "golden", "--rounds", "6", "--device", "cpu", *ONE),
    *("--weight-decay", "0", "--batch-size", "8"),
)


class KilledError(Exception):
    """Ends a run as a kill does: nothing more is written."""


def fedclip(*arguments: str, exits: Sequence[int] = (0,)) -> int:
    """Run a command line in this process, silently, and return its exit code."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = int(import_module("fedclip.cli").run([*arguments]))
    if code not in exits:
        sys.exit(f"fedclip {' '.join(arguments)}: exit code {code}\n{told.getvalue()}")
    return code


def draw_cache(folder: Path) -> None:
    """Draw features around their class texts, and write them as three clients' files."""
    cache = import_module("fedclip.cache")
    random = np.random.default_rng(25)
    texts = random.normal(size=(len(CLASSES), 1, WIDTH))
    texts[:, :, TOLD:] *= 0.4
    texts = texts + 0.25 * random.normal(size=(len(CLASSES), len(TEMPLATES), WIDTH))
    place = folder / f"drawn-none-{cache.image_key(ENCODER)[:8]}"
    place.mkdir(parents=True)
    for client, rows in ROWS.items():
        labels = random.integers(len(CLASSES), size=rows)
        noise = random.normal(size=(rows, WIDTH)) * np.where(np.arange(WIDTH) < TOLD, 1.2, 2.2)
        shift = 0.4 * random.normal(size=WIDTH)
        images = texts[labels].mean(axis=1) + noise + shift
        lengths = 10 + 0.5 * random.normal(size=(rows, 1))
        images *= lengths / np.linalg.norm(images, axis=1, keepdims=True)
        features = images.astype("<f4")
        cache.write_cache(
            cache.FeatureCache(
                dataset="golden",
                client=client,
                encoder=ENCODER,
                logit_scale=20.0,
                normalized=False,
                image_features=features,
                labels=labels.astype("<i4"),
                ids=tuple(f"{client}/{index:03d}.png" for index in range(rows)),
                digests=np.stack([_digest(row) for row in features]),
                class_names=CLASSES,
                templates=TEMPLATES,
                text_features=texts.astype("<f4"),
            ),
            place / f"{client}.h5",
        )


def _digest(row: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), np.uint8)


def draw_images(folder: Path) -> None:
    """Draw flat shapes as ``<domain>/<class>/<image>``, a few hundred bytes each."""
    y, x = np.mgrid[:SIDE, :SIDE]
    for d, domain in enumerate(DOMAINS):
        for s, shape in enumerate(SHAPES):
            for index in range(IMAGES):
                random = np.random.default_rng([d, s, index])
                (middle, across), radius = random.integers(12, 20, size=2), random.integers(7, 11)
                distance = {
                    "circle": np.hypot(x - across, y - middle),
                    "square": np.maximum(abs(x - across), abs(y - middle)),
                    "triangle": np.maximum(y - middle, 2 * abs(x - across) - (y - middle)),
                }[shape]
                inside = distance < radius
                if domain == "outline":
                    inside &= distance >= radius - 3
                paper, ink = random.integers([[200], [0]], [[256], [100]], size=(2, 3))
                pixels = np.where(inside[..., None], ink, paper).astype(np.uint8)
                path = folder / domain / shape / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, optimize=True)


def extract_images(images: Path, caches: Path, package: Path) -> None:
    """Encode the images with the tiny CLIP that comes with the package."""
    model = package / "extract" / "demo" / "tinyclip"
    fedclip(
        *("extract", "--dataset", str(images), "--name", "extracted", "--device", "cpu"),
        *("--model", f"local-dir:{model}", "--cache-dir", str(caches)),
        *(option for template in TEMPLATES for option in ("--template", template)),
    )
    for manifest in caches.glob("extracted/*/manifest.json"):
        _replace(
            manifest, {str(images.resolve()): f"{GONE}/images", str(model): f"{GONE}/tinyclip"}
        )


def federate(
    options: Sequence[str], caches: Path, runs: Path, engine: str = "plain"
) -> tuple[Path, int]:
    """Run a case into an empty folder; give the run's folder and the exit code."""
    places = ("--engine", engine, "--cache-dir", str(caches), "--runs-dir", str(runs))
    code = fedclip("federate", *BASE, *options, *places, exits=(0, 1))
    (run,) = runs.iterdir()
    return run, code


def expected(name: str, options: Sequence[str], caches: Path, keep: Path) -> dict[str, Any]:
    """Say what a case gives, and with `threads` beside; keep its folder where it is to be kept."""
    with tempfile.TemporaryDirectory() as folder:
        run, code = federate(options, caches, Path(folder) / "plain")
        other, _ = federate(options, caches, Path(folder) / "threads", "threads")
        results = {target: figures(place) for target, place in _targets(run).items()}
        for target, place in _targets(other).items():
            results[target]["threads"] = _beside(figures(place), results[target])
        if name in KEPT:
            _keep(run, keep / run.name, caches)
        return {
            "options": [*BASE, *options],
            "run": run.name,
            "exit_code": code,
            "targets": results,
        }


def figures(place: Path) -> dict[str, Any]:
    """Read what a run of one target left, timings apart."""
    result = json.loads((place / "result.json").read_text())
    lines = [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()]
    taken = (
        *("status", "best_round", "accuracy", "zero_shot", "validation", "personal", "dropped"),
        *("bytes_per_round", "trainable_parameters"),
    )
    adapter, personal = place / "adapter.safetensors", place / "personal.safetensors"
    return {
        **{what: result[what] for what in taken},
        "train_loss": [line["train_loss"] for line in lines],
        "validation_by_round": [line["validation"] for line in lines],
        "adapter_sha256": tensors_sha256(adapter),
        "adapter_sums": _sums(adapter),
        "personal_sha256": tensors_sha256(personal),
    }


def tensors_sha256(path: Path) -> str | None:
    """Hash a file's tensors, sorted by name: each one's name, then its float32 bytes."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor, "<f4").tobytes())
    return digest.hexdigest()


def _sums(path: Path) -> dict[str, list[float]] | None:
    """Sum each tensor and its squares, for a machine that rounds otherwise."""
    if not path.is_file():
        return None
    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    return {name: [float(each.sum()), float((each**2).sum())] for name, each in tensors.items()}


def _beside(figure: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Say what another engine gives, as far as it is not what `plain` gives."""
    told = {what for what in figure if what != "adapter_sums"}
    return {what: figure[what] for what in sorted(told) if figure[what] != plain[what]}


def _targets(run: Path) -> dict[str, Path]:
    below = {path.parent.name: path.parent for path in sorted(run.glob("*/result.json"))}
    if below:
        return below
    return {json.loads((run / "config.json").read_text())["target"]: run}


def interrupted(
    name: str, options: Sequence[str], caches: Path, keep: Path, *, kill: bool = False
) -> None:
    """Leave a run of which three rounds are saved, and with `kill` two more are recorded."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (
            *("federate", *BASE, *options, "--engine", "plain", "--name", name),
            *("--cache-dir", str(caches), "--runs-dir", folder, "--save-every", "3"),
        )
        if kill:
            with _ending_after(5, KilledError), contextlib.suppress(KilledError):
                fedclip(*arguments)
        else:
            with _ending_after(3, KeyboardInterrupt):
                fedclip(*arguments, exits=(130,))
        _keep(Path(folder) / name, keep / name, caches)


@contextlib.contextmanager
def _ending_after(rounds: int, error: type[BaseException]) -> Iterator[None]:
    """Have a run raise `error` when it is about to begin another round than these."""
    run = import_module("fedclip.federate.server").Run
    tasks: Callable[[Any], Any] = run.tasks

    def ending(self: Any) -> Any:
        if self.state.number == rounds:
            raise error
        return tasks(self)

    run.tasks = ending
    try:
        yield
    finally:
        run.tasks = tasks


def ablate(caches: Path, table: Path) -> None:
    """Run the ablation, and keep its table."""
    with tempfile.TemporaryDirectory() as folder:
        fedclip(
            *("ablate", *ABLATION, "--engine", "plain", "--cache-dir", str(caches)),
            *("--runs-dir", folder, "--csv", str(table)),
        )


def _lines(value: Any, depth: int = 4) -> str:
    """Format as JSON that begins a line for each item down to a depth."""
    if depth == 0 or not value or not isinstance(value, dict):
        return json.dumps(value, sort_keys=True, allow_nan=False)
    items = (f"{json.dumps(key)}: {_lines(value[key], depth - 1)}" for key in sorted(value))
    return "{\n" + ",\n".join(items) + "\n}"


def _keep(run: Path, place: Path, caches: Path) -> None:
    """Copy a run as it is, but for the folder that its cache was in."""
    shutil.copytree(run, place)
    for config in place.rglob("config.json"):
        _replace(config, {str(caches.resolve()): f"{GONE}/caches"})


def _replace(path: Path, strings: Mapping[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in strings.items():
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def check_paths(folders: Sequence[Path], package: Path) -> None:
    """Check that no file tells of the machine."""
    told = {tempfile.gettempdir(), str(Path.home()), str(package), str(folders[0].parent.resolve())}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        for string in told:
            if string.encode() in path.read_bytes():
                sys.exit(f"{path}: has {string} in it")


def main(arguments: Sequence[str]) -> None:
    """Make everything anew in the folder that is named."""
    package = Path(str(import_module("fedclip.cli").__file__)).resolve().parent
    found = import_module("fedclip").__version__
    if found != VERSION or len(arguments) != 1:
        sys.exit(f"usage: make.py FOLDER, with fedclip {VERSION} (this is {found})")
    os.environ["HF_HUB_OFFLINE"] = "1"
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    caches, images, runs = out / "caches", out / "images", out / "runs"
    for folder in (caches, images, runs):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("ablation.csv", "expected.json"):
        (out / name).unlink(missing_ok=True)
    draw_cache(caches / "golden")
    draw_images(images)
    extract_images(images, caches, package)
    runs.mkdir()
    cases = {name: expected(name, options, caches, runs) for name, options in CASES.items()}
    for name, case in INTERRUPTED.items():
        interrupted(name, CASES[case], caches, runs)
    for name, case in KILLED.items():
        interrupted(name, CASES[case], caches, runs, kill=True)
    ablate(caches, out / "ablation.csv")
    everything = {
        "made_with": {
            "fedclip": VERSION,
            "commit": "8b18a3f",
            "engine": "plain",
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "cases": cases,
        "kept_runs": {name: cases[name]["run"] for name in KEPT},
        "interrupted_runs": {**INTERRUPTED, **KILLED},
        "ablation": {"options": [*ABLATION], "table": "ablation.csv"},
    }
    (out / "expected.json").write_text(_lines(everything) + "\n", encoding="utf-8")
    check_paths([caches, images, runs], package)


if __name__ == "__main__":
    main(sys.argv[1:])
