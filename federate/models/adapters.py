"""Adapters: the small networks that are trained and federated.

An adapter is called as ``image, text = adapter(image, text)`` on (B, D) and (C, D)
tensors; one that leaves a side alone returns it as it came. Its state is its
parameters and nothing else, and each row is adapted by itself.
"""

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.samples import Samples
from ..settings import RATIOS, AdapterName
from .losses import Scale, cosine_logits

# Tip-Adapter's sharpness, and how many rows it compares with its cache at once.
SHARPNESS = 5.5
COMPARED_AT_ONCE = 1024


class Adapter(nn.Module):
    """What all adapters, and the whole models in their place, have besides their `forward`."""

    def remember(self, samples: Samples) -> None:
        """Take what the adapter keeps of a client's training part; nothing by itself."""

    def logits(self, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Compare (B, D) images with (C, D) texts, both as they came: (B, C)."""
        image, text = self(image, text)
        return cosine_logits(image, text, logit_scale)


class AttentionAdapter(Adapter):
    """The paper's adapter: image features weighted by attention over their dimensions.

    ``I* = softmax(Linear(tanh(Linear(I)))) * I``, both layers D to D (Lu et al. 2023,
    arXiv:2302.13485, section 3.2); for D = 512 these are 525,312 parameters. The
    input is the raw feature, not a normalised one. Texts are left alone.

    Args:
        embed_dim: Width of the features, D.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.attention = _attention(embed_dim)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh (B, D) image features; return them and the (C, D) texts untouched."""
        return self.attention(image) * image, text


class TextAttentionAdapter(Adapter):
    """The paper's attention, on class texts in place of image features.

    Args:
        embed_dim: Width of the features, D.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.attention = _attention(embed_dim)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, D) image features untouched, and the weighed (C, D) texts."""
        return image, self.attention(text) * text


class BothAttentionAdapter(Adapter):
    """The paper's attention on both sides, each with parameters of its own.

    Args:
        embed_dim: Width of the features, D.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.image_attention = _attention(embed_dim)
        self.text_attention = _attention(embed_dim)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh (B, D) image features and (C, D) texts."""
        return self.image_attention(image) * image, self.text_attention(text) * text


class LinearAdapter(Adapter):
    """One linear layer on image features, the identity at the start.

    ``I* = W I + b`` with W = 1 and b = 0 at first. A random W would throw away the
    alignment of images and texts that zero-shot rests on, and a few rounds on a few
    thousand samples do not learn it again; from the identity the first round starts at
    zero-shot.

    Args:
        embed_dim: Width of the features, D.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, D) image features; return them and the (C, D) texts untouched."""
        return self.linear(image), text


class ResidualAdapter(Adapter):
    """CLIP-Adapter: image features blended with what a bottleneck makes of them.

    ``I* = r A(I) + (1 - r) I`` with ``A(I) = relu(W2 relu(W1 I))``, D to D / 4 to D, no
    biases (Gao et al. 2021, arXiv:2110.04544; the bottleneck and r = 0.2 from its code).
    The layers start at random, as in the source: what keeps the features at first is a
    small r.

    Args:
        embed_dim: Width of the features, D.
        ratio: r, in (0, 1].
    """

    def __init__(self, embed_dim: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        width = max(1, embed_dim // 4)
        self.bottleneck = nn.Sequential(
            nn.Linear(embed_dim, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, embed_dim, bias=False),
            nn.ReLU(),
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Blend (B, D) image features; return them and the (C, D) texts untouched."""
        return self.ratio * self.bottleneck(image) + (1 - self.ratio) * image, text


class TaskResidualAdapter(Adapter):
    """TaskRes: a learned residual on each class text, zero at the start.

    ``T* = T + a X`` with one row of X for each class (Yu et al. 2023, arXiv:2211.10277;
    a = 0.5 there by default).

    Args:
        text: (C, D) class texts, of which only the shape counts.
        scale: a.
    """

    def __init__(self, text: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.residual = nn.Parameter(torch.zeros_like(text))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, D) image features untouched, and the (C, D) texts moved."""
        return image, text + self.scale * self.residual


class ScaleAdapter(Adapter):
    """One weight per image feature, all 1 at the start.

    ``I* = w * I``, as (IA)^3 rescales activations (Liu et al. 2022, arXiv:2205.05638).

    Args:
        embed_dim: Width of the features, D.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(embed_dim))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Rescale (B, D) image features; return them and the (C, D) texts untouched."""
        return self.weight * image, text


class LinearProbe(Adapter):
    """Learned class vectors in place of the texts, which they equal at the start.

    The linear probe of Radford et al. 2021 (arXiv:2103.00020) is fitted from nothing.
    Here logits are cosines, which vectors of zeros do not have; a classifier that is
    fine-tuned from the texts is that of Wortsman et al. 2021 (arXiv:2109.01903).

    Args:
        text: (C, D) class texts.
    """

    def __init__(self, text: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(text.clone())

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, D) image features untouched, and (C, D) class vectors for `text`."""
        return image, self.weight


class CacheModel(Adapter):
    """Tip-Adapter: a client's own training samples vote, and nothing is trained.

    ``logits = s I T^t + r exp(-b (1 - I K^t)) V``, I, T and K normalised, K the (n, D)
    training features of the client and V their (n, C) classes, one-hot (Zhang et al. 2022,
    arXiv:2111.03930, section 3.1; r = 1 and b = 5.5 there). It never leaves the client.
    Without samples it is zero-shot.

    Args:
        ratio: r.
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self._keys: Tensor | None = None
        self._labels: Tensor | None = None

    def remember(self, samples: Samples) -> None:
        """Take a client's training samples, in place of those before."""
        self._keys = functional.normalize(samples.features, dim=-1)
        self._labels = samples.labels

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) image features and (C, D) texts untouched."""
        return image, text

    def logits(self, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Add the samples' votes to zero-shot logits, (B, C)."""
        logits = super().logits(image, text, logit_scale)
        if self._keys is None or self._labels is None:
            return logits
        classes = functional.one_hot(self._labels, len(text)).to(image.dtype)
        votes = [
            (SHARPNESS * (functional.normalize(rows, dim=-1) @ self._keys.T - 1)).exp() @ classes
            for rows in torch.split(image, COMPARED_AT_ONCE)
        ]
        return logits + self.ratio * torch.cat(votes)


class NoAdapter(Adapter):
    """Zero-shot: both sides as they came, and nothing to train."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) image features and (C, D) texts untouched."""
        return image, text


# Made for (C, D) class texts and a ratio, which is NaN for those that have none.
ADAPTERS: Mapping[AdapterName, Callable[[Tensor, float], Adapter]] = {
    "attention": lambda text, _: AttentionAdapter(text.shape[1]),
    "attention-text": lambda text, _: TextAttentionAdapter(text.shape[1]),
    "attention-both": lambda text, _: BothAttentionAdapter(text.shape[1]),
    "linear": lambda text, _: LinearAdapter(text.shape[1]),
    "residual": lambda text, ratio: ResidualAdapter(text.shape[1], ratio),
    "taskres": TaskResidualAdapter,
    "scale": lambda text, _: ScaleAdapter(text.shape[1]),
    "linear-probe": lambda text, _: LinearProbe(text),
    "cache-model": lambda _, ratio: CacheModel(ratio),
    "none": lambda text, _: NoAdapter(),
}


def make_adapter(name: AdapterName, text: Tensor, seed: int, ratio: float | None = None) -> Adapter:
    """Make an adapter for the features that `text` belongs to, the same for equal seeds.

    Args:
        name: Which one.
        text: (C, D) class texts.
        seed: Of what is drawn at random.
        ratio: CLIP-Adapter's ratio, TaskRes's scale or the weight of Tip-Adapter's cache; None
            for that of the source.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ADAPTERS[name](text, RATIOS.get(name, float("nan")) if ratio is None else ratio)


def trainable_parameters(adapter: nn.Module) -> int:
    """Count the numbers that are trained."""
    return sum(p.numel() for p in adapter.parameters() if p.requires_grad)


def describe_adapters(embed_dim: int, classes: int) -> list[tuple[AdapterName, int, str]]:
    """Give every adapter's name, trainable parameters and what it is in a line.

    Args:
        embed_dim: Width of the features, D.
        classes: Number of classes, C.
    """
    text = torch.zeros(classes, embed_dim)
    made = {name: make_adapter(name, text, seed=0) for name in ADAPTERS}
    return [
        (
            name,
            trainable_parameters(adapter),
            inspect.cleandoc(adapter.__doc__ or "").split("\n")[0],
        )
        for name, adapter in made.items()
    ]


def _attention(embed_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(embed_dim, embed_dim),
        nn.Tanh(),
        nn.Linear(embed_dim, embed_dim),
        nn.Softmax(dim=-1),
    )
