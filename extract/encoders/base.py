"""The interface between the pipeline and a frozen encoder of any library.

An encoder of a dataset's samples, images or texts, implements `SampleEncoder`, and one of prompts
`TextEncoder`. CLIP is both, and so is an encoder of texts, whose one tower serves for both. To add
a family of encoders, add a file beside this one and a line in `registry.py`.
"""

import hashlib
import logging
import string
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...cache import FedclipError
from ...cache.common.device import repeatable_cudnn
from ...cache.common.errors import first_line
from ...cache.key import EncoderFacts, canonical_json
from ..datasets.registry import SampleKind
from ..hub import commit_of
from .spec import EncoderName
from .transforms import Decoder

Vectors = npt.NDArray[np.float32]

# The dtype of each precision in `spec.PRECISIONS`.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Texts that distinguish tokenizers: every printable ASCII character, other scripts, case,
# spaces, digits, rare words, and a text longer than any context.
_PROBE = (
    string.printable,
    "Ärger, naïveté, Ελλάδα, Москва, 東京, مرحبا, 🙂",
    "a picture of a Dog; an X-ray, 3.5 mm; A  SKETCH\tof the electroencephalographs' giraffes!",
    "quartz sphinx judges my vow of antidisestablishmentarianism " * 50,
)


_SHOWN = 3

# Tensors in files of earlier versions of transformers, which computes them from the config now.
_CONSTANTS = (".position_ids", ".masked_bias", ".inv_freq")


class Encoder(Protocol):
    """A frozen encoder on a device."""

    @property
    def name(self) -> EncoderName:
        """The encoder as the user names it."""

    @property
    def facts(self) -> EncoderFacts:
        """The facts that identify it; the cache's keys are hashes of them."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files it was loaded from; the encoder is unchanged if they are."""

    @property
    def logit_scale(self) -> float:
        """The factor on similarities of images and texts; 1 if the encoder has none."""

    @property
    def device(self) -> torch.device:
        """The device it runs on."""


@runtime_checkable
class SampleEncoder(Encoder, Protocol):
    """An encoder of a dataset's samples."""

    @property
    def samples(self) -> SampleKind:
        """What it encodes."""

    @property
    def decode(self) -> Decoder:
        """Function from a sample's bytes to what the network takes; can be pickled."""

    @property
    def blank(self) -> Tensor:
        """Zeros of the shape and dtype of what `decode` returns."""

    def launch(self, inputs: Tensor) -> "Launched":
        """Start encoding (B, ...) decoded samples to (B, D) float32 raw features."""


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder with a text side."""

    def encode_texts(self, prompts: Sequence[str]) -> Vectors:
        """Encode N prompts to (N, T) float32 raw features; T is D if they compare with images."""


@runtime_checkable
class CutsOff(Protocol):
    """An encoder that reads only the beginning of a long sample."""

    def cut_off(self, inputs: Tensor) -> Tensor:
        """Return which of (B, ...) decoded samples were longer than what is read, (B,) bool."""


@dataclass(frozen=True, eq=False)
class Launched:
    """Features being computed: (B, D) float32 on the host, valid once `arrived` is recorded."""

    features: Tensor
    arrived: torch.cuda.Event | None = None

    def numpy(self) -> Vectors:
        """Wait for the features and return them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        array: Vectors = self.features.numpy()
        return array


@dataclass(frozen=True, eq=False)
class Launcher:
    """Encodes batches on a device; a GPU copies and computes at the same time.

    Attributes:
        encode: The network: (B, ...) inputs on the device to (B, D) raw features.
        device: The device it runs on.
    """

    encode: Callable[[Tensor], Tensor]
    device: torch.device

    def __call__(self, inputs: Tensor) -> Launched:
        """Start encoding (B, ...) decoded samples to (B, D) float32 raw features.

        On a GPU this returns before the features are computed, and pinned inputs are copied while
        the previous batch is still being encoded.
        """
        with inference():
            features = self.encode(self._upload(inputs)).float()
            # Only CUDA has events that report when a background copy is complete.
            here = features.to("cpu", non_blocking=self.device.type == "cuda")
        if self.device.type != "cuda":
            return Launched(here)
        return Launched(here, torch.cuda.current_stream(self.device).record_event())

    @cached_property
    def _copies(self) -> torch.cuda.Stream | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _upload(self, inputs: Tensor) -> Tensor:
        if self._copies is None:
            return inputs.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            there = inputs.to(self.device, non_blocking=True)
        computing.wait_stream(self._copies)
        there.record_stream(computing)
        return there


@contextmanager
def inference() -> Iterator[None]:
    """Compute without gradients, and in full float32 precision on a GPU as on a CPU.

    TF32 and autotuned kernels would make a GPU's float32 differ from a CPU's.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), repeatable_cudnn():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def pad_batch(batch: Tensor, size: int) -> Tensor:
    """Repeat the last of at most `size` rows until there are `size`."""
    return torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a network's function with ``torch.compile``, for batches of one shape."""
    fast = torch.compile(function, dynamic=False)

    def call(*arguments: Any, **options: Any) -> Tensor:
        try:
            result: Tensor = fast(*arguments, **options)
        except RuntimeError as error:
            raise FedclipError(
                f"--compile: does not work here ({first_line(error)}); leave out --compile"
            ) from None
        return result

    return call


def facts_of(
    name: EncoderName,
    library: str,
    model: nn.Module,
    weights_sha256: str | None,
    *,
    shared: Mapping[str, Any],
    image: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    place: Path | None = None,
) -> EncoderFacts:
    """Collect the facts that identify an encoder, those that every family has among them.

    Args:
        name: The encoder as the user names it.
        library: The library that builds it.
        model: The network.
        weights_sha256: SHA-256 of its weights' file; None if they are random.
        shared: What else affects all vectors, such as the architecture.
        image: What affects image vectors only.
        text: What affects text vectors only.
        place: The file or folder that it was loaded from.
    """
    commit = commit_of(place)
    shown_model, shown_pretrained = name.shown
    return EncoderFacts(
        shared={
            "library": library,
            "weights_sha256": weights_sha256 or tensors_sha256(model),
            "random_weights": weights_sha256 is None,
            "precision": name.precision,
            **shared,
            **({"compiled": True} if name.compiled else {}),
        },
        image=image or {},
        text=text or {},
        about={
            "model": shown_model,
            "pretrained": shown_pretrained,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **({"commit": commit} if commit else {}),
        },
    )


def tensors_sha256(model: nn.Module) -> str:
    """Hash a model's parameters and buffers, such as random ones: SHA-256, 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence libraries while a model loads; problems are raised or recorded anyway."""
    previous = logging.root.manager.disable
    # open_clip calls `logging.info`, which adds a printing handler to a root logger that has
    # none. That handler would print our records too from then on.
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        logging.root.removeHandler(silent)


def tokenizer_sha256(tokenizer: Callable[[list[str]], Tensor]) -> str:
    """Hash a tokenizer's output for a fixed list of texts."""
    tokens = tokenizer(list(_PROBE))
    return hashlib.sha256(canonical_json(tokens.tolist()).encode()).hexdigest()


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights of a training that diverged.

    Raises:
        FedclipError: a value is NaN or infinite; the message follows "it".
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise FedclipError(f"has NaN or Inf in {some(bad)}")


def check_unused(model: nn.Module, unused: Iterable[str], prefix: str = "") -> None:
    """Refuse weights of a larger network, such as one of more layers.

    Args:
        model: The network that was loaded from them.
        unused: The tensors that it has no place for. Those of other parts, such as a head of a
            classifier, are left alone, and so are constants that libraries used to save.
        prefix: Name of the network within larger ones.

    Raises:
        FedclipError: one belongs to a part of the network; the message follows "it".
    """
    parts, constants = dict(model.named_children()), dict(model.named_buffers())
    names = {each: each.removeprefix(f"{prefix}.") for each in sorted(unused)}
    surplus = [
        each
        for each, name in names.items()
        if name.partition(".")[0] in parts
        and name not in constants
        and not name.endswith(_CONSTANTS)
    ]
    if surplus:
        raise FedclipError(f"has {some(surplus)}, which the architecture lacks")


def some(names: Sequence[object]) -> str:
    """Name the first few, and count the others."""
    shown = ", ".join(map(str, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
