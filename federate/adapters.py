"""Adapters: the small networks that are trained and federated.

An adapter is called as ``image, text = adapter(image, text)`` on (B, D) and (C, D)
tensors; one that leaves a side alone returns it as it came.
"""

import torch
from torch import Tensor, nn


class AttentionAdapter(nn.Module):
    """The paper's adapter: image features weighted by attention over their dimensions.

    ``I* = softmax(Linear(tanh(Linear(I)))) * I``, both layers D to D (Lu et al. 2023,
    arXiv:2302.13485, section 3.2); for D = 512 these are 525,312 parameters. The
    input is the raw feature, not a normalised one. Texts are left alone.

    Args:
        embed_dim: Width of the features, D.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.Tanh(),
            nn.Linear(embed_dim, embed_dim),
            nn.Softmax(dim=-1),
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh (B, D) image features; return them and the (C, D) texts untouched."""
        return self.attention(image) * image, text


def make_adapter(embed_dim: int, seed: int) -> nn.Module:
    """Make the adapter with PyTorch's own initialisation, the same for equal seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentionAdapter(embed_dim)
