"""Exported classifiers beside PyTorch: size, agreement, and images per second.

    uv run python benchmarks/export.py --place /tmp/export
    uv run python benchmarks/export.py --place /tmp/export --rates

The first command draws the demo's images, federates over them with encoders of random weights,
exports each whole classifier as ONNX, in float32 and with the encoder in float16, and compares
onnxruntime with PyTorch on all images. The second one times the files that the first has left;
nothing else should run on the machine then.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch

import fedclip
from fedclip.cli import run
from fedclip.extract.encoders.pixels import PixelEncoder, pixel_encoder
from fedclip.federate.models.classifier import Scores
from fedclip.federate.models.export import OPSET

BATCH = 32
SAMPLES = 64

Classify = Callable[[Any], Any]


def command(*arguments: object) -> None:
    """Run a command that must succeed."""
    if run([*map(str, arguments)]):
        raise SystemExit(f"failed: {' '.join(map(str, arguments))}")


def session(file: Path, threads: int) -> Any:
    """Open an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def prepare(model: str) -> None:
    """Encode the demo's images, federate and export, unless that is done."""
    random = ["--model", model, "--pretrained", "random", "--name", model]
    command("extract", "--dataset", "demo")
    command("extract", "--dataset", "data/demo", *random)
    if not Path("runs", model).exists():
        settings = ["--preset", "tuned", "--rounds", 5, "--target", "sketch"]
        command("federate", "--cache", model, *settings, "--name", model)
    images = sorted(Path("data/demo").glob("*/*/*.png"))[:: 1200 // SAMPLES]
    samples = [word for image in images for word in ("--sample", image)]
    for name, options in ((model, []), (f"{model}-fp16", ["--fp16"])):
        common = ["--run", model, "--with-encoder", *options, *samples]
        command("export", *common, "--out", f"{name}.onnx")


def batches(encoder: PixelEncoder, images: list[Path]) -> Iterator[Any]:
    """Yield batches of pixels."""
    for start in range(0, len(images), BATCH):
        decoded = [encoder.decode(path.read_bytes())[0] for path in images[start : start + BATCH]]
        yield torch.stack(decoded).numpy()


def agreement(model: str, threads: int) -> None:
    """Compare onnxruntime, from pixels, with PyTorch, from the features that extract has cached."""
    use = fedclip.load_classifier(model, device="cpu")
    encoder = pixel_encoder(use.encoder)
    paths, expected = [], list[Scores]()
    for client, cache in fedclip.load_cache(model).items():
        paths += [Path("data/demo", each) for each in cache.ids]
        expected.append(use.classifier(cache.image_features))
        assert all(path.parts[2] == client for path in paths[-len(cache.ids) :])
    theirs = [
        torch.cat([getattr(each, name) for each in expected]).softmax(1).numpy()
        for name in ("adapted", "zero_shot")
    ]
    for name in (model, f"{model}-fp16"):
        file = Path(f"{name}.onnx")
        opened = session(file, threads)
        made = [opened.run(None, {"pixels": each}) for each in batches(encoder, paths)]
        ours = [np.concatenate(each) for each in zip(*made, strict=True)]
        difference = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
        same = [(a.argmax(1) == b.argmax(1)).sum() for a, b in zip(ours, theirs, strict=True)]
        print(
            f"{name:16} opset {OPSET}, {file.stat().st_size / 1e6:.1f} MB, probabilities differ by "
            f"up to {difference:.1e}, same class for {same[0]} (adapted) and {same[1]} (zero-shot) "
            f"of {len(paths)} images",
            flush=True,
        )


def rates(model: str, threads: int, repeat: int) -> None:
    """Time batches of noise in turn: PyTorch as `predict` computes, and onnxruntime."""
    use = fedclip.load_classifier(model, device="cpu")
    facts = use.encoder.facts
    mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
    shape = (BATCH, 3, *facts["image_size"])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    opened = {name: session(Path(f"{name}.onnx"), threads) for name in (model, f"{model}-fp16")}

    def in_torch(batch: Any) -> Any:
        normalized = (torch.from_numpy(batch).float() / 255 - mean) / std
        features = use.encoder.launch(normalized).numpy()
        return use.classifier(features).adapted.softmax(1).numpy()

    def in_onnx(name: str) -> Classify:
        return lambda batch: opened[name].run(None, {"pixels": batch})

    ways: dict[str, Classify] = {"PyTorch": in_torch, **{name: in_onnx(name) for name in opened}}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeat + 1):
        for name, classify in ways.items():
            start = time.perf_counter()
            classify(pixels)
            if number:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    found = {name: BATCH / float(np.median(each)) for name, each in seconds.items()}
    for name, rate in found.items():
        print(f"{model}, {name}: {rate:.1f} images/s, {rate / found['PyTorch']:.2f} of PyTorch")


def main() -> None:
    """Prepare and compare, or time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=["ViT-B-32", "RN50"])
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=7)
    wanted = parser.parse_args()
    wanted.place.mkdir(parents=True, exist_ok=True)
    os.chdir(wanted.place)
    torch.set_num_threads(wanted.threads)
    for model in wanted.models:
        if wanted.rates:
            rates(model, wanted.threads, wanted.repeat)
        else:
            prepare(model)
            agreement(model, wanted.threads)


if __name__ == "__main__":
    main()
