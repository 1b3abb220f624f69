"""How a domain's samples are split among several clients."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import FedclipError
from fedclip.federate.data.partition import Dirichlet, Rows
from fedclip.federate.seeding import generator


def split(labels: npt.NDArray[np.int32], clients: int, alpha: float, seed: int) -> Sequence[Rows]:
    return Dirichlet(clients, alpha).split(labels, generator("partition", seed, "photo"))


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([0.01, 0.3, 1.0, 1000.0]),
    seed=st.integers(0, 2**31),
)
def test_every_row_goes_to_one_client(
    sizes: list[int], clients: int, alpha: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    if not len(labels):
        return
    parts = split(labels, clients, alpha, seed)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for first, second in zip(parts, split(labels, clients, alpha, seed), strict=True):
        assert first.tolist() == second.tolist()


def test_a_large_alpha_splits_evenly_and_a_small_one_does_not() -> None:
    labels = np.repeat(np.arange(10), 100).astype(np.int32)

    def spread(alpha: float) -> float:
        parts = split(labels, 5, alpha, seed=0)
        counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
        return float(counts.std())

    assert spread(1e4) < 1
    assert spread(0.05) > 30


@pytest.mark.parametrize(
    ("clients", "alpha", "complaint"),
    [
        (0, 1.0, "--clients 0: must be at least 1"),
        (2, 0.0, "--alpha 0.0: must be above 0"),
        (2, float("inf"), "--alpha inf: must be a finite number"),
    ],
)
def test_invalid_values_are_refused(clients: int, alpha: float, complaint: str) -> None:
    with pytest.raises(FedclipError, match=complaint):
        Dirichlet(clients, alpha)
