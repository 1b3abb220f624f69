"""What is trained, whatever it is: an adapter, a whole network.

Importing this imports neither torch nor numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from ...cache import FeatureCache
    from ..data.samples import Inputs
    from .network import Network


class Model(ABC):
    """Describes what is trained, and makes it.

    Attributes:
        kind: What it is called; seeds its random draws and names the file of its parameters.
        stackable: Whether many of its clients can be trained as one stack: its inputs are the
            cached features, all in memory. Other models are for the engine `plain`.
        rows_at_once: Samples that are evaluated together.
        sends: Whether it has parameters to send; one without is for the strategy `local`.
        local_parts: Prefixes of the names of the parameters that FedRep leaves with a client.
        zero_shot: Whether the cached features are those it starts from, so that their
            zero-shot accuracy is what it is compared with.
        kept: Whether the best round's parameters are written beside the result.
        facts: What identifies it besides the settings, as JSON values; None if nothing does.
        origin: What it can be made from again, as JSON values; None if the settings are enough.
    """

    kind: ClassVar[str] = "model"
    stackable: ClassVar[bool] = False
    rows_at_once: ClassVar[int] = 256
    sends: ClassVar[bool] = True
    local_parts: ClassVar[tuple[str, ...]] = ()
    zero_shot: bool = True
    kept: bool = True

    facts: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] | None = None

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is in a few words, such as "adapter attention"."""

    @abstractmethod
    def make(self, text: Tensor, seed: int) -> Network:
        """Make the network, the same one for equal seeds.

        Args:
            text: (C, D) class texts of the cache.
            seed: Seed of what is drawn at random.
        """

    @abstractmethod
    def inputs(self, cache: FeatureCache, features: Tensor) -> Inputs:
        """Return what the network takes for a cache's rows.

        Args:
            cache: The domain's cache.
            features: (N, D) its features as they are trained on.
        """

    @abstractmethod
    def texts(self, text: Tensor) -> Tensor:
        """Return what the network takes for the classes, given the cache's (C, D) texts."""
