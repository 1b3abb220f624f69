"""How a user names an encoder; importing this imports no encoder.

For open_clip, the name is an architecture with a pretrained tag or a checkpoint file, a
``local-dir:`` folder or an ``hf-hub:`` repository. ``timm:NAME.TAG`` is an image model of timm,
which may also be in a place of its own, as in ``timm:local-dir:FOLDER``, and ``hf:FOLDER`` or
``hf:OWNER/NAME`` is a text model of transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.files import regular, slug
from ...cache.common.text import check_utf8
from ..datasets.registry import DEMO

LOCAL_DIR = "local-dir:"
HF_HUB = "hf-hub:"
TIMM = "timm:"
TRANSFORMERS = "hf:"
DEFAULT_MODEL = "ViT-B-32"
DEMO_MODEL = f"{LOCAL_DIR}{Path(__file__).parents[1] / 'demo' / 'tinyclip'}"
DEFAULT_PRETRAINED = "openai"
RANDOM = "random"
OWN = "own"  # the weights that a model has by default
PRECISIONS = ("fp32", "fp16", "bf16")
RESIZERS = ("pillow", "torchvision")
POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class EncoderName:
    """An encoder as the user names it.

    Attributes:
        model: An open_clip architecture, ``local-dir:FOLDER``, ``hf-hub:OWNER/NAME``,
            ``timm:NAME.TAG``, ``timm:local-dir:FOLDER``, ``timm:hf-hub:OWNER/NAME``,
            ``hf:FOLDER`` or ``hf:OWNER/NAME``.
        pretrained: A tag, a checkpoint file or ``random``; None for the weights
            of the folder or repository.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        resizer: ``pillow`` or ``torchvision``, see `transforms`.
        compiled: Whether the network is compiled by ``torch.compile``.
        pooling: How a text model's tokens are pooled: ``mean``, ``cls`` or None for its own way.
        others: Further encoders, whose features are joined to its own.
    """

    model: str
    pretrained: str | None
    precision: str = "fp32"
    resizer: str = "pillow"
    compiled: bool = False
    pooling: str | None = None
    others: tuple["EncoderName", ...] = ()

    @classmethod
    def joined(
        cls,
        models: Sequence[str],
        pretrained: Sequence[str],
        precision: str = "fp32",
        resizer: str = "pillow",
        *,
        compiled: bool = False,
        pooling: str | None = None,
    ) -> Self:
        """Name one or several encoders; see `of`.

        Args:
            models: The models, in the order of their features.
            pretrained: The weights of each, of which `OWN` are the default; empty for all defaults.
            precision: The precision of all.
            resizer: The resizer of all.
            compiled: Whether all are compiled.
            pooling: The pooling of all text models.

        Raises:
            FedclipError: as `of` does, or there are not as many weights as models.
        """
        if pretrained and len(pretrained) != len(models):
            raise FedclipError(
                f"--pretrained: is set {len(pretrained)} times for {len(models)} models; set it "
                f"once for each, to {OWN} for the default"
            )
        weights = [None if each == OWN else each for each in pretrained] or [None] * len(models)
        first, *others = (
            cls.of(model, tag, precision, resizer, compiled=compiled, pooling=pooling)
            for model, tag in zip(models, weights, strict=True)
        )
        if first in others:
            raise FedclipError(f"--model {first.model}: is set twice; set it once")
        return replace(first, others=tuple(others))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read the JSON value of a name, with those of the others in it.

        Raises:
            TypeError: the value has other fields.
        """
        others = tuple(cls.from_json(each) for each in value.get("others", ()))
        return cls(**{**value, "others": others})

    @property
    def each(self) -> tuple["EncoderName", ...]:
        """The encoders that are joined, or only this one."""
        return (replace(self, others=()), *self.others)

    @classmethod
    def of(
        cls,
        model: str,
        pretrained: str | None,
        precision: str = "fp32",
        resizer: str = "pillow",
        *,
        compiled: bool = False,
        pooling: str | None = None,
    ) -> Self:
        """Fill in the default weights: OpenAI's, or those of the folder or repository.

        Raises:
            FedclipError: weights are set for a folder or repository, which has its own, the
                precision or resizer is unknown, or a name is not UTF-8.
        """
        for named in (model, pretrained or ""):
            check_utf8(named)
        for what, value, known in (
            ("precision", precision, PRECISIONS),
            ("resizer", resizer, RESIZERS),
        ):
            if value not in known:
                raise FedclipError(f"--{what} {value}: unknown {what}{suggest(value, known)}")
        if pooling is not None and not model.startswith(TRANSFORMERS):
            raise FedclipError(
                f"--pooling {pooling}: only applies to text models ({TRANSFORMERS}NAME); leave "
                "it out"
            )
        place = model.removeprefix(TIMM).startswith((LOCAL_DIR, HF_HUB, TRANSFORMERS))
        if place and pretrained not in (None, RANDOM):
            raise FedclipError(
                f"--pretrained {pretrained}: {model} has its own weights; leave out --pretrained"
            )
        if model.startswith(TIMM):
            return cls(model, pretrained, precision, resizer, compiled)
        if pretrained is None and not place:
            pretrained = DEFAULT_PRETRAINED
        if pretrained is not None and not _names_file(pretrained):
            pretrained = pretrained.lower().replace("-", "_")  # as open_clip reads tags
        return cls(model, pretrained, precision, resizer, compiled, pooling)

    @property
    def shown(self) -> tuple[str, str]:
        """Model and weights as a cache records them, without folders of this machine."""
        model, pretrained = self.model, self.pretrained
        if folder := folder_of(model):
            model = in_folder(model, folder.name)
        if pretrained is None:
            pretrained = OWN
        elif is_file(pretrained):
            pretrained = Path(pretrained).name
        return model, pretrained

    @property
    def variant(self) -> str:
        """The name as a part of the cache folder's name: ``<model>-<tag>``."""
        model, pretrained = self.shown
        names = [f"{bare(model)}-{pretrained}", *(each.variant for each in self.others)]
        return slug("+".join(names))


def bare(model: str) -> str:
    """Return a model's name without the prefix of its family."""
    for prefix in (TIMM, LOCAL_DIR, HF_HUB, TRANSFORMERS):
        model = model.removeprefix(prefix)
    return model


def default_model(dataset: str | None) -> str:
    """Return the default model for a dataset."""
    return DEMO_MODEL if dataset == DEMO else DEFAULT_MODEL


def folder_of(model: str) -> Path | None:
    """Return the absolute path of the folder that a model's name contains; None without one."""
    place = Path(bare(model))
    if names_folder(model) or (model.startswith(TRANSFORMERS) and place.is_dir()):
        return place.resolve()
    return None


def names_folder(model: str) -> bool:
    """Return whether a model is named by a folder, whether or not that exists."""
    return model.removeprefix(TIMM).startswith(LOCAL_DIR)


def in_folder(model: str, folder: str) -> str:
    """Return a model's name with `folder` in place of the folder that it contains."""
    return f"{model.removesuffix(bare(model))}{folder}"


def is_file(pretrained: str) -> bool:
    """Return whether `pretrained` is an existing checkpoint file, as opposed to a tag."""
    return _names_file(pretrained) and regular(Path(pretrained)).is_file()


def _names_file(pretrained: str) -> bool:
    path = Path(pretrained)
    return bool(path.suffix) or path.name != pretrained  # a tag has no suffix and no folder
