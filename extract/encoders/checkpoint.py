"""Files of weights as they are found: read safely, unwrapped and checked, then loaded.

Trainers wrap what they save: in a dictionary beside the optimizer's state, and in prefixes of
every name. What is left after unwrapping must be the weights of the model, all of them finite.
"""

import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...cache import FedclipError
from ...cache.key import file_sha256
from .base import check_finite, some

Tensors = dict[str, Tensor]

# What OpenAI's archives have beside the weights. Whatever has them was trained with QuickGELU.
OPENAI_ENTRIES = frozenset({"input_resolution", "context_length", "vocab_size"})

# Where trainers put the weights in a checkpoint, the likeliest first.
_PLACES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")

# What data parallelism, torch.compile and Lightning put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")

_DEEPEST = 4  # a pickle can contain itself

_NUMPY = (".npz", ".npy")

# The whole hash of a file as a folder in a URL, or its beginning at the end of the name.
_DIGEST = re.compile(r"/([0-9a-f]{64})/|-([0-9a-f]{8})\.pth?$")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file of weights, read and unwrapped.

    Attributes:
        path: The file.
        sha256: Its hash, 64 hex digits.
        tensors: Its tensors by name; empty for NumPy's files, which open_clip reads.
        published: open_clip's configs of the tags under which this very file was published.
    """

    path: Path
    sha256: str
    tensors: Tensors
    published: Sequence[Mapping[str, Any]]

    @property
    def quick_gelu(self) -> bool | None:
        """Whether the weights were trained with QuickGELU; None if that cannot be told."""
        if self.published:
            return any(tag.get("quick_gelu") for tag in self.published)
        return True if self.tensors.keys() >= OPENAI_ENTRIES else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights in a file, without what they are wrapped in.

    Args:
        path: Safetensors, what `torch.save` wrote, or a big_vision archive of NumPy. A
            TorchScript archive is a program, so it is read only if OpenAI published it.

    Raises:
        FedclipError: it contains something else than weights; the message follows "it".
        Exception: it cannot be read; the types are those of torch and safetensors.
    """
    sha256 = file_sha256(path)
    published = _published(sha256)
    content: Any
    if path.suffix in _NUMPY:
        return Checkpoint(path, sha256, {}, published)
    if path.suffix == ".safetensors" or _is_safetensors(path):
        content = load_file(path)
    elif _is_torchscript(path):
        if sha256 not in _digests().values():
            raise FedclipError(
                "is a TorchScript archive, which is a program, and not one that OpenAI published; "
                "if you trust it, save the state_dict() of torch.jit.load(FILE) with torch.save"
            )
        content = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    return Checkpoint(path, sha256, _without_prefixes(_tensors_in(content)), published)


def _digests() -> dict[tuple[str, str], str]:
    """Return the SHA-256, or how it begins, of the files that open_clip's tags have a URL of."""
    tags = [(model, tag) for model, tag in open_clip.list_pretrained()]
    urls = {each: open_clip.get_pretrained_url(*each) for each in tags}
    found = {each: _DIGEST.search(url) for each, url in urls.items()}
    return {each: match[1] or match[2] for each, match in found.items() if match}


def _published(sha256: str) -> list[Mapping[str, Any]]:
    """List the configs of the tags whose file has this hash."""
    return [
        open_clip.get_pretrained_cfg(*each)
        for each, digest in _digests().items()
        if sha256.startswith(digest)
    ]


def _is_safetensors(path: Path) -> bool:
    """Tell safetensors, whatever its suffix: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        return file.read(10)[8:] == b'{"'


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _tensors_in(content: Any) -> Tensors:
    """Unwrap the weights in a checkpoint.

    Raises:
        FedclipError: there are none.
    """
    for _ in range(_DEEPEST):
        if isinstance(content, Mapping):
            inner = (content[place] for place in _PLACES if place in content)
            content = next((each for each in inner if isinstance(each, Mapping)), content)
    if not isinstance(content, Mapping):
        raise FedclipError(f"contains a {type(content).__name__}, and no tensors by name")
    if not content:
        raise FedclipError("is empty")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise FedclipError(f"has no tensor as {some(others)}")
    return {str(name): tensor for name, tensor in content.items()}


def _without_prefixes(tensors: Tensors) -> Tensors:
    """Remove what wrappers of modules put before every name, in any order."""
    # A part of the model can be compiled too: `visual._orig_mod.conv1.weight`.
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while prefix := _common_prefix(tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _common_prefix(names: Collection[str]) -> str | None:
    return next((each for each in _PREFIXES if all(name.startswith(each) for name in names)), None)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load a file's weights into a model of open_clip, which converts those of other projects.

    Args:
        model: The model.
        checkpoint: All weights of the model, and nothing else but OpenAI's entries.

    Returns:
        Names of the position embeddings that open_clip resized, as the model's images or texts
        have another size.

    Raises:
        FedclipError: weights are missing, unknown, not floats or not finite; the message follows
            "it".
        Exception: they do not fit; the types are those of torch and open_clip.
    """
    own = model.state_dict()
    weights = {
        name: tensor for name, tensor in checkpoint.tensors.items() if name not in OPENAI_ENTRIES
    }
    resized = [
        name
        for name, tensor in weights.items()
        if name.endswith("positional_embedding") and name in own and len(tensor) != len(own[name])
    ]
    _check_floats(own, weights)
    with _in_place_of_file(weights):
        wrong = open_clip.load_checkpoint(model, str(checkpoint.path), strict=False)
    if wrong:  # not after loading NumPy's files, which open_clip checks
        _check_names(own.keys(), {*wrong.missing_keys}, wrong.unexpected_keys)
    check_finite(model.state_dict())
    _check_logit_scale(model.state_dict())
    return resized


def _check_floats(own: Tensors, tensors: Tensors) -> None:
    """Refuse quantized and complex weights, of which loading would keep other numbers.

    Raises:
        FedclipError: a tensor is not of floats where the model's is; the message follows "it".
    """
    floats = {name for name, tensor in own.items() if tensor.is_floating_point()}
    bad = [name for name in tensors if name in floats and not tensors[name].is_floating_point()]
    if bad:
        raise FedclipError(f"has {tensors[bad[0]].dtype} in place of floats in {some(bad)}")


def _check_logit_scale(tensors: Tensors) -> None:
    """Refuse a logit scale of which the exponential is no scale.

    Raises:
        FedclipError: it is too large or too small; the message follows "it".
    """
    if "logit_scale" not in tensors:
        return
    logarithm = tensors["logit_scale"].float()
    scale = logarithm.exp()
    if not (torch.isfinite(scale) & (scale > 0)).all():
        raise FedclipError(
            f"has the logit_scale {logarithm.max().item():g}, of which the exponential is "
            f"{scale.max().item():g}; it must be a logarithm, such as 4.6"
        )


@contextmanager
def _in_place_of_file(tensors: Tensors) -> Iterator[None]:
    """Make open_clip take `tensors` where it would read a file, which it does less carefully."""
    factory = open_clip.factory
    read = factory.load_state_dict
    factory.load_state_dict = lambda *_, **__: dict(tensors)
    try:
        yield
    finally:
        factory.load_state_dict = read


def _check_names(own: Collection[str], missing: Collection[str], others: Sequence[str]) -> None:
    """Refuse weights that are incomplete, or of something else.

    Raises:
        FedclipError: names are missing or unknown.
    """
    towers: dict[str, list[str]] = {"image": [], "text": []}
    for name in own:
        if not name.startswith("logit_"):
            towers["image" if name.startswith("visual.") else "text"].append(name)
    lost = [tower for tower, names in towers.items() if missing and {*names} <= {*missing}]
    if len(lost) == len(towers):
        raise FedclipError(f"has none of the model's tensors, only {some(others)}")
    if lost:
        raise FedclipError(f"has no {lost[0]} tower ({some(towers[lost[0]])})")
    if missing:
        raise FedclipError(f"has no {some(sorted(missing))}")
    if others:
        raise FedclipError(f"has {some(others)}, which the architecture lacks")
