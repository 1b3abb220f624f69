"""Adapters: the small networks that are trained and federated.

An adapter is a frozen dataclass whose fields are its hyper-parameters. `layers` makes its
parameters and `forward` uses them; the network built from both is called as
``image, text = network(image, text)`` on (B, D) and (C, D) tensors. A side that an adapter
leaves alone is returned as it came. Each row is adapted independently of the others.

Importing this imports no torch: the command line lists adapters before it needs any.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...cache.common.fields import check_options, option, options_of, show_value
from ..registry import Registry
from .base import Model
from .losses import cosine_logits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...cache import FeatureCache
    from ..data.samples import Inputs, Samples
    from .losses import Scale
    from .network import Network


@dataclass(frozen=True)
class Adapter(Model):
    """An adapter over cached features.

    Attributes:
        replaces_texts: Whether it ignores the class vectors after it was made, as its own
            parameters take their place.
    """

    replaces_texts: ClassVar[bool] = False
    kind: ClassVar[str] = "adapter"
    stackable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 1024

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
        """Make the parameters by name; torch's generator is seeded when this is called.

        Args:
            text: (C, D) class texts.
        """

    @abstractmethod
    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt (B, D) image features and (C, D) class texts.

        Args:
            layers: Has what `layers` made as attributes.
            image: (B, D) image features.
            text: (C, D) class texts.
        """

    def logits(self, layers: Any, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Compare (B, D) images with (C, D) texts, neither adapted yet: (B, C) logits."""
        image, text = self.forward(layers, image, text)
        return cosine_logits(image, text, logit_scale)

    def remember(self, layers: Any, samples: Samples) -> None:
        """Keep something of a client's training samples; nothing by default."""

    @property
    def title(self) -> str:
        """The adapter's name and its hyper-parameters."""
        values = {name: getattr(self, name) for name in options_of(type(self))}
        own = "".join(f" {name} {show_value(value)}" for name, value in values.items())
        return f"adapter {ADAPTERS.name_of(self)}{own}"

    def make(self, text: Tensor, seed: int) -> Network:
        """Make the adapter for class texts, (C, D): the same one for equal seeds."""
        import torch

        from .network import AdapterNetwork

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AdapterNetwork(self, self.layers(text))

    def inputs(self, cache: FeatureCache, features: Tensor) -> Inputs:
        """Train on the features themselves."""
        return features

    def texts(self, text: Tensor) -> Tensor:
        """Use the class texts themselves."""
        return text


@dataclass(frozen=True)
class Attention(Adapter):
    """The paper's adapter: image features weighted by attention over their dimensions.

    ``I* = softmax(Linear(tanh(Linear(I)))) * I``, both layers D to D (Lu et al. 2023,
    arXiv:2302.13485, section 3.2); for D = 512 these are 525,312 parameters. The
    input is the raw feature, not a normalized one. Texts are left alone.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("attention.2.",)  # the second layer, as FedRep's head

    def layers(self, text: Tensor) -> Mapping[str, nn.Module]:
        """Make both linear layers."""
        return {"attention": _attention(text.shape[1])}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Weight the image features."""
        return layers.attention(image) * image, text


@dataclass(frozen=True)
class TextAttention(Adapter):
    """The paper's attention, on class texts in place of image features."""

    local_parts: ClassVar[tuple[str, ...]] = ("attention.2.",)

    def layers(self, text: Tensor) -> Mapping[str, nn.Module]:
        """Make both linear layers."""
        return {"attention": _attention(text.shape[1])}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Weight the class texts."""
        return image, layers.attention(text) * text


@dataclass(frozen=True)
class BothAttention(Adapter):
    """The paper's attention on both sides, with separate parameters."""

    local_parts: ClassVar[tuple[str, ...]] = ("text_attention.",)

    def layers(self, text: Tensor) -> Mapping[str, nn.Module]:
        """Make the image side's layers, then the text side's."""
        return {
            "image_attention": _attention(text.shape[1]),
            "text_attention": _attention(text.shape[1]),
        }

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Weight both sides."""
        return layers.image_attention(image) * image, layers.text_attention(text) * text


@dataclass(frozen=True)
class Linear(Adapter):
    """One linear layer on image features, initialized to the identity.

    ``I* = W I + b`` with W = 1 and b = 0 at first. A random W would throw away the
    alignment of images and texts that zero-shot accuracy rests on, and a few rounds on a few
    thousand samples do not learn it again; from the identity the first round starts at
    zero-shot.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("linear.bias",)

    def layers(self, text: Tensor) -> Mapping[str, nn.Module]:
        """Make the identity."""
        from torch import nn

        linear = nn.Linear(text.shape[1], text.shape[1])
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
        return {"linear": linear}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map the image features."""
        return layers.linear(image), text


@dataclass(frozen=True)
class Residual(Adapter):
    """CLIP-Adapter: image features blended with the output of a bottleneck.

    ``I* = r A(I) + (1 - r) I`` with ``A(I) = relu(W2 relu(W1 I))``, D to D / 4 to D, no
    biases (Gao et al. 2021, arXiv:2110.04544; the bottleneck and r = 0.2 from its code).
    The layers start at random, as in the source: a small r is what keeps the features at first.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("bottleneck.2.",)
    ratio: float = option(
        0.2,
        above=0,
        most=1,
        help="Share of the bottleneck's output in the adapted feature.",
        source="Gao et al. 2021, code",
    )

    def layers(self, text: Tensor) -> Mapping[str, nn.Module]:
        """Make the bottleneck."""
        from torch import nn

        embed_dim = text.shape[1]
        width = max(1, embed_dim // 4)
        return {
            "bottleneck": nn.Sequential(
                nn.Linear(embed_dim, width, bias=False),
                nn.ReLU(),
                nn.Linear(width, embed_dim, bias=False),
                nn.ReLU(),
            )
        }

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Blend the image features."""
        return self.ratio * layers.bottleneck(image) + (1 - self.ratio) * image, text


@dataclass(frozen=True)
class TaskResidual(Adapter):
    """TaskRes: a learned residual on each class text, zero at the start.

    ``T* = T + a X`` with one row of X for each class (Yu et al. 2023, arXiv:2211.10277).
    """

    ratio: float = option(
        0.5, above=0, help="Scale of the residual on the class texts.", source="Yu et al. 2023"
    )

    def layers(self, text: Tensor) -> Mapping[str, nn.Parameter]:
        """Make a residual of zeros."""
        import torch
        from torch import nn

        return {"residual": nn.Parameter(torch.zeros_like(text))}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Move the class texts."""
        return image, text + self.ratio * layers.residual


@dataclass(frozen=True)
class ScaleFeatures(Adapter):
    """One weight per image feature, all 1 at the start.

    ``I* = w * I``, as (IA)^3 rescales activations (Liu et al. 2022, arXiv:2205.05638).
    """

    def layers(self, text: Tensor) -> Mapping[str, nn.Parameter]:
        """Make a weight of ones."""
        import torch
        from torch import nn

        return {"weight": nn.Parameter(torch.ones(text.shape[1]))}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Rescale the image features."""
        return layers.weight * image, text


@dataclass(frozen=True)
class LinearProbe(Adapter):
    """Learned class vectors in place of the texts, which they equal at the start.

    The linear probe of Radford et al. 2021 (arXiv:2103.00020) is fitted from nothing.
    Here logits are cosines, which vectors of zeros do not have; a classifier that is
    fine-tuned from the texts is that of Wortsman et al. 2021 (arXiv:2109.01903).
    """

    replaces_texts: ClassVar[bool] = True

    def layers(self, text: Tensor) -> Mapping[str, nn.Parameter]:
        """Copy the class texts."""
        from torch import nn

        return {"weight": nn.Parameter(text.clone())}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the class texts."""
        return image, layers.weight


@dataclass(frozen=True)
class CacheModel(Adapter):
    """Tip-Adapter: a client's own training samples vote, and nothing is trained.

    ``logits = s I T^t + r exp(-b (1 - I K^t)) V``, I, T and K normalized, K the (n, D)
    training features of the client and V their (n, C) classes, one-hot (Zhang et al. 2022,
    arXiv:2111.03930, section 3.1; b = 5.5 there). It never leaves the client. Without samples
    it is zero-shot.
    """

    sends: ClassVar[bool] = False

    # Tip-Adapter's b, and the rows that are compared with the samples at once.
    sharpness: ClassVar[float] = 5.5
    compared_at_once: ClassVar[int] = 1024

    ratio: float = option(
        1.0, above=0, help="Weight of the votes of a client's samples.", source="Zhang et al. 2022"
    )

    def layers(self, text: Tensor) -> Mapping[str, nn.Module]:
        """Make nothing: nothing is trained."""
        return {}

    def remember(self, layers: Any, samples: Samples) -> None:
        """Keep a client's training samples, in place of those before."""
        from torch.nn.functional import normalize

        layers.keys, layers.labels = normalize(samples.features, dim=-1), samples.labels

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Leave both sides alone."""
        return image, text

    def logits(self, layers: Any, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Add the samples' votes to the zero-shot logits."""
        import torch
        from torch.nn.functional import normalize, one_hot

        logits = super().logits(layers, image, text, logit_scale)
        keys = getattr(layers, "keys", None)
        if keys is None:
            return logits
        classes = one_hot(layers.labels, len(text)).to(image.dtype)
        votes = [
            (self.sharpness * (normalize(rows, dim=-1) @ keys.T - 1)).exp() @ classes
            for rows in torch.split(image, self.compared_at_once)
        ]
        return logits + self.ratio * torch.cat(votes)


@dataclass(frozen=True)
class NoAdapter(Adapter):
    """Zero-shot: both sides as they came, and nothing to train."""

    def layers(self, text: Tensor) -> Mapping[str, nn.Module]:
        """Make nothing."""
        return {}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Leave both sides alone."""
        return image, text


ADAPTERS: Registry[Adapter] = Registry(
    "adapter",
    Adapter,  # type: ignore[type-abstract]
    __package__,
    {
        "attention": "adapters:Attention",
        "attention-text": "adapters:TextAttention",
        "attention-both": "adapters:BothAttention",
        "linear": "adapters:Linear",
        "residual": "adapters:Residual",
        "taskres": "adapters:TaskResidual",
        "scale": "adapters:ScaleFeatures",
        "linear-probe": "adapters:LinearProbe",
        "cache-model": "adapters:CacheModel",
        "none": "adapters:NoAdapter",
    },
    group="fedclip.adapters",
)


def describe_adapters(embed_dim: int, classes: int) -> list[tuple[str, int, str]]:
    """Return every adapter's name, number of trained parameters and one line on it.

    Args:
        embed_dim: Width of the features, D.
        classes: Number of classes, C.
    """
    import torch

    from .network import trainable_parameters

    text = torch.zeros(classes, embed_dim)
    return [
        (
            name,
            trainable_parameters(kind().make(text, seed=0)),
            inspect.cleandoc(kind.__doc__ or "").split("\n")[0],
        )
        for name, kind in ADAPTERS.classes().items()
    ]


def _attention(embed_dim: int) -> nn.Sequential:
    from torch import nn

    return nn.Sequential(
        nn.Linear(embed_dim, embed_dim),
        nn.Tanh(),
        nn.Linear(embed_dim, embed_dim),
        nn.Softmax(dim=-1),
    )
