"""Several encoders as one, whose features are normalized and joined: CLIP and DINOv2, say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...cache import FedclipError
from ...cache.key import EncoderFacts
from ..datasets.registry import SampleKind
from .base import CutsOff, Launched, SampleEncoder, TextEncoder, Vectors
from .spec import EncoderName
from .transforms import Decoder


@dataclass(frozen=True, eq=False)
class Towers:
    """Encoders of the same samples on one device, a `SampleEncoder`.

    The features of each are normalized before they are joined, so that all count alike. A sample
    is what the encoders take, flattened and joined.

    Attributes:
        name: The encoders as the user names them.
        towers: The encoders.
        facts: The facts that identify them.
        logit_scale: 1: the encoders' own scales do not apply to joined features.
    """

    name: EncoderName
    towers: tuple[SampleEncoder, ...]
    facts: EncoderFacts
    logit_scale: float = 1.0

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files on this machine that the encoders were loaded from."""
        return tuple(path for tower in self.towers for path in tower.sources)

    @property
    def device(self) -> torch.device:
        """The device they run on."""
        return self.towers[0].device

    @property
    def samples(self) -> SampleKind:
        """What they encode."""
        return self.towers[0].samples

    @property
    def decode(self) -> Decoder:
        """Function from a sample's bytes to what the encoders take, (L,)."""
        return _Decode(tuple(tower.decode for tower in self.towers))

    @cached_property
    def blank(self) -> Tensor:
        """Zeros, (L,)."""
        return torch.cat([tower.blank.flatten() for tower in self.towers])

    def launch(self, inputs: Tensor) -> Launched:
        """Start encoding (B, L) decoded samples to (B, D) float32 features of norm sqrt(N)."""
        launched = [
            tower.launch(part) for tower, part in zip(self.towers, self._split(inputs), strict=True)
        ]
        vectors = [torch.from_numpy(each.numpy()) for each in launched]
        return Launched(torch.cat([functional.normalize(each) for each in vectors], dim=1))

    def cut_off(self, inputs: Tensor) -> Tensor:
        """Return which of (B, L) decoded samples one encoder reads the beginning of, (B,) bool."""
        cut = torch.zeros(len(inputs), dtype=torch.bool)
        for tower, part in zip(self.towers, self._split(inputs), strict=True):
            if isinstance(tower, CutsOff):
                cut |= tower.cut_off(part)
        return cut

    def _split(self, inputs: Tensor) -> list[Tensor]:
        ends = np.cumsum([0, *(tower.blank.numel() for tower in self.towers)])
        return [
            inputs[:, start:end].reshape(len(inputs), *tower.blank.shape)
            for tower, (start, end) in zip(self.towers, pairwise(ends), strict=True)
        ]


@dataclass(frozen=True, eq=False)
class TextTowers(Towers):
    """Encoders that all have a text side of the width of their features, a `TextEncoder` too."""

    def encode_texts(self, prompts: Sequence[str]) -> Vectors:
        """Encode N prompts to (N, D) float32 features, joined like those of samples."""
        vectors = [
            functional.normalize(torch.from_numpy(tower.encode_texts(prompts)))
            for tower in self.towers
            if isinstance(tower, TextEncoder)
        ]
        array: Vectors = torch.cat(vectors, dim=1).numpy()
        return array


@dataclass(frozen=True)
class _Decode:
    decoders: tuple[Callable[[bytes], Tensor], ...]

    def __call__(self, content: bytes) -> Tensor:
        return torch.cat([decode(content).flatten() for decode in self.decoders])


def join(name: EncoderName, towers: Sequence[SampleEncoder]) -> Towers:
    """Join encoders; they have class texts together if each has.

    Raises:
        FedclipError: one encodes images, another texts.
    """
    first = towers[0]
    for tower in towers:
        if tower.samples != first.samples:
            raise FedclipError(
                f"--model {tower.name.model}: encodes {tower.samples}, but {first.name.model} "
                f"{first.samples}; join models of one kind"
            )
    facts = EncoderFacts(
        **{
            group: {group: [tower.facts.groups[group] for tower in towers]}
            for group in ("shared", "image", "text")
        },
        about={
            "library": " + ".join(str(tower.facts["library"]) for tower in towers),
            "model": " + ".join(str(tower.facts["model"]) for tower in towers),
            "pretrained": " + ".join(str(tower.facts["pretrained"]) for tower in towers),
            "parameters": sum(int(tower.facts["parameters"]) for tower in towers),
            "random_weights": any(tower.facts["random_weights"] for tower in towers),
        },
    )
    kind = TextTowers if all(isinstance(tower, TextEncoder) for tower in towers) else Towers
    return kind(name, tuple(towers), facts)
