"""Cells of several values that tables of results have."""

from dataclasses import dataclass

from ...cache.common.tables import Compound, Show


@dataclass(frozen=True)
class Accuracy(Compound):
    """An accuracy without an adapter, and with it."""

    zero_shot: float | None
    adapted: float | None

    @property
    def rank(self) -> float | None:
        """The adapted accuracy."""
        return self.adapted

    def text(self, show: Show) -> str:
        """Return `zero-shot > adapted`."""
        return (
            show(None) if self.adapted is None else f"{show(self.zero_shot)} > {show(self.adapted)}"
        )

    def latex(self, show: Show) -> str:
        """Return the two with an arrow between them."""
        if self.adapted is None:
            return show(None)
        return rf"{show(self.zero_shot)} \to {show(self.adapted)}"


@dataclass(frozen=True)
class MeasuredAccuracy(Accuracy):
    """An accuracy, and the number of test samples that it is of."""

    test_samples: int | None


@dataclass(frozen=True)
class Interval(Compound):
    """A difference, and the interval that has the true one with 95 % confidence."""

    difference: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether no difference is outside the interval."""
        return self.low > 0 or self.high < 0

    @property
    def rank(self) -> float:
        """The difference."""
        return self.difference

    def text(self, show: Show) -> str:
        """Return `difference (low to high)`, with a star if it is beyond noise."""
        star = "*" if self.beyond_noise else ""
        return f"{show(self.difference)}{star} ({show(self.low)} to {show(self.high)})"

    def latex(self, show: Show) -> str:
        """Return the same, the star as an exponent."""
        star = "^{*}" if self.beyond_noise else ""
        low, high = show(self.low), show(self.high)
        return rf"{show(self.difference)}{star}\ [{low},\ {high}]"

    def parts(self) -> dict[str, float | bool]:
        """Return the values by field, and whether they are beyond noise."""
        return {**super().parts(), "beyond_noise": self.beyond_noise}
