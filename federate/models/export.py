"""A classifier as one program for other runtimes: from features, or from pixels, to probabilities.

A program has no Python left: `torch.export` traces it, and it is saved as ONNX or as a ``.pt2``.
What is written was run and compared with PyTorch before.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.extras import load_extra
from ...cache.common.files import replacing
from ..training.tasks import size_of
from .classifier import Classifier
from .losses import cosine_logits

# What ONNX files are written for; every onnxruntime since 1.17 reads it.
OPSET = 20

# Largest ONNX file that can hold its weights: that of a protocol buffer.
ONNX_BYTES = 2**31 - 2**20

# Probabilities may differ by this much between PyTorch and another runtime.
TOLERANCE = 1e-4

# Samples that a program is compared with where none are given.
SAMPLES = 8

Inputs = tuple[Tensor, ...]

# Probabilities (B, C): those of the adapter, and zero-shot where that is defined.
Outputs = tuple[Tensor, ...]


class FeatureProgram(nn.Module):
    """(B, D) raw features to probabilities.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.inputs: tuple[str, ...] = ("features",)
        self.outputs: tuple[str, ...] = ("probabilities",)
        if classifier.zero_shot:
            self.outputs += ("zero_shot",)
        self.network = classifier.network
        self.register_buffer("texts", classifier.texts)
        self.logit_scale = classifier.logit_scale
        self.feature_norm = classifier.facts.get("feature_norm")

    def forward(self, features: Tensor) -> Outputs:
        """Classify features."""
        if self.feature_norm is not None:
            features = features * (self.feature_norm / features.norm(dim=1, keepdim=True))
        texts = self.get_buffer("texts")
        logits = [self.network.logits(features, texts, self.logit_scale)]
        if "zero_shot" in self.outputs:
            logits.append(cosine_logits(features, texts, self.logit_scale))
        return tuple(each.softmax(dim=1) for each in logits)


class ImageProgram(nn.Module):
    """(B, 3, H, W) uint8 pixels to probabilities; of several encoders, each takes its own pixels.

    Args:
        encoder: Pixels to (B, D) raw features.
        names: Names of the encoder's inputs.
        classifier: Classifies the features.
    """

    def __init__(self, encoder: nn.Module, names: Sequence[str], classifier: Classifier) -> None:
        super().__init__()
        self.inputs = tuple(names)
        self.encoder = encoder
        self.classify = FeatureProgram(classifier)
        self.outputs = self.classify.outputs

    def forward(self, *pixels: Tensor) -> Outputs:
        """Classify pixels."""
        outputs: Outputs = self.classify(self.encoder(*pixels))
        return outputs


Program = FeatureProgram | ImageProgram


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        bytes: Size of the file.
        checked: Number of inputs on which it was compared with PyTorch.
        difference: Largest difference of a probability.
        opset: ONNX's version of operators; None for other formats.
    """

    bytes: int
    checked: int
    difference: float
    opset: int | None = None


def export_program(
    classifier: Classifier,
    to: str,
    path: Path,
    metadata: Mapping[str, Any],
    encoder: nn.Module | None = None,
    pixels: Mapping[str, Tensor] | None = None,
    *,
    half: bool = False,
) -> Written:
    """Write a classifier as a program.

    Args:
        classifier: From features to probabilities.
        to: ``onnx`` or ``torch``.
        path: The file.
        metadata: JSON values that the file is to carry, by name.
        encoder: From pixels to features; None for a program that takes features.
        pixels: (N, 3, H, W) samples to compare with, by the names of the encoder's inputs.
        half: Whether the encoder, which is changed for it, computes in float16.

    Raises:
        FedclipError: a library is not installed, or the program cannot be exported.
    """
    classifier = classifier.to(torch.device("cpu"))
    write = write_onnx if to == "onnx" else write_torch
    if encoder is None or pixels is None:
        random = torch.Generator().manual_seed(0)
        drawn = torch.randn(SAMPLES, classifier.texts.shape[1], generator=random)
        return write(FeatureProgram(classifier), (drawn,), path, metadata)
    inputs = tuple(pixels.values())
    program = ImageProgram(encoder, tuple(pixels), classifier)
    expected = None
    if half:
        expected = run_program(program, inputs)
        encoder.half()
    return write(program, inputs, path, metadata, expected)


def write_onnx(
    program: Program,
    inputs: Inputs,
    path: Path,
    metadata: Mapping[str, Any],
    expected: Outputs | None = None,
) -> Written:
    """Write a program as one ONNX file with a dynamic batch, checked in onnxruntime.

    Args:
        program: What to write.
        inputs: (N, ...) samples to trace and compare with, for each of its inputs.
        path: The file.
        metadata: JSON values that the file is to carry, by name.
        expected: What a program of full precision returns for `inputs`, if this one is of less:
            the difference to it is then measured, and may be any. None for what this one returns.

    Raises:
        FedclipError: a library is not installed, the program cannot be written, or onnxruntime
            gives other probabilities.
    """
    load_extra("onnx")
    size = size_of(program.state_dict())
    if size > ONNX_BYTES:
        raise FedclipError(
            f"--to onnx: {size / 1e9:.1f} GB of weights do not fit into one ONNX file, which may "
            "have 2 GB; use --fp16, or --to torch"
        )
    traced = _traced(program, inputs)
    with _quiet(), _explained("--to onnx"):
        made = torch.onnx.export(
            traced,
            opset_version=OPSET,
            dynamo=True,
            input_names=list(program.inputs),
            output_names=list(program.outputs),
            verbose=False,
        )
    assert made is not None
    for name, value in metadata.items():
        made.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with _quiet(), _explained("--to onnx"):
            made.save(str(temporary), external_data=False)
        run = _onnx_runner(temporary, program.inputs)
        difference = _compared(program, inputs, run, expected)
        return Written(temporary.stat().st_size, len(inputs[0]), difference, OPSET)


def write_torch(
    program: Program,
    inputs: Inputs,
    path: Path,
    metadata: Mapping[str, Any],
    expected: Outputs | None = None,
) -> Written:
    """Write a program as a ``.pt2`` file with a dynamic batch, loaded and compared again.

    Args:
        program: What to write.
        inputs: (N, ...) samples to trace and compare with, for each of its inputs.
        path: The file.
        metadata: JSON values that the file is to carry, as ``fedclip.json``.
        expected: As `write_onnx` takes it.

    Raises:
        FedclipError: the program cannot be written, or gives other probabilities.
    """
    traced = _traced(program, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        file = temporary.with_name(f"{temporary.name}.pt2")  # torch insists on the suffix
        try:
            with _quiet(), _explained("--to torch"):
                extra = {"fedclip.json": json.dumps(dict(metadata))}
                torch.export.save(traced, file, extra_files=extra)
                loaded = torch.export.load(file).module()
            file.replace(temporary)
        finally:
            file.unlink(missing_ok=True)
        difference = _compared(program, inputs, loaded, expected)
        return Written(temporary.stat().st_size, len(inputs[0]), difference)


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest difference of a probability."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@torch.inference_mode()
def run_program(program: Program, inputs: Inputs) -> Outputs:
    """Run a program in PyTorch."""
    with _without_fast_path():
        outputs: Outputs = program.eval()(*inputs)
    return outputs


def _traced(program: Program, inputs: Inputs) -> ExportedProgram:
    several = tuple(torch.cat([each, each])[:2] for each in inputs)  # of one, it would be fixed
    batch = {0: Dim("batch", min=1)}
    batches = tuple(batch for _ in inputs)
    with _quiet(), _without_fast_path(), torch.no_grad(), _explained("export"):
        return torch.export.export(
            program.eval(),
            several,
            dynamic_shapes=(batches,) if isinstance(program, ImageProgram) else batches,
            strict=False,
        )


def _compared(
    program: Program,
    inputs: Inputs,
    run: Callable[..., Outputs],
    expected: Outputs | None,
) -> float:
    """Compare all inputs together, and the first alone; return the largest difference."""
    outputs = expected or run_program(program, inputs)
    with torch.no_grad():
        difference = max(
            largest_difference(outputs, run(*inputs)),
            largest_difference([each[:1] for each in outputs], run(*(each[:1] for each in inputs))),
        )
    if expected is None and not difference <= TOLERANCE:
        raise FedclipError(
            f"export: the exported program gives other probabilities than PyTorch (by "
            f"{difference:.2g}), so it was not written; report this with the name of the encoder"
        )
    return difference


def _onnx_runner(path: Path, names: Sequence[str]) -> Callable[..., Outputs]:
    session = onnx_session(path)

    def run(*inputs: Tensor) -> Outputs:
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, given)))

    return run


def onnx_session(path: Path) -> Any:
    """Open an ONNX file in onnxruntime, on the CPU.

    Raises:
        FedclipError: onnxruntime is not installed, or cannot run the file.
    """
    runtime = load_extra("onnx", "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    with _explained("--to onnx"):
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises into one line."""
    try:
        yield
    except (FedclipError, OSError):
        raise
    except Exception as error:
        raise FedclipError(
            f"{what}: this adapter or encoder cannot be exported ({first_line(error)})"
        ) from error


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Compute attention by plain operators, which exporters know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, whose problems are raised or found by comparing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
