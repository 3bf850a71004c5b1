"""How far two raters agree: agreement, Cohen's kappa, and their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.checks.audit import Rate, wilson_interval

_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two raters.

    Attributes:
        agreed: share of agreement with its 95 % Wilson interval. Its counts are items, or parts of items.
        kappa: Cohen's kappa (Cohen 1960), the agreement beyond chance; None if both gave one and the same label
            everywhere, so that chance alone explains all agreement.
        kappa_low: lower end of kappa's interval: that of the agreement, at the measured chance agreement.
        kappa_high: upper end of kappa's interval.
    """

    agreed: Rate
    kappa: float | None
    kappa_low: float
    kappa_high: float

    def __str__(self) -> str:
        kappa = "not defined: both gave the same label everywhere"
        if self.kappa is not None:
            kappa = f"{self.kappa:.2f} ({self.kappa_low:.2f} to {self.kappa_high:.2f})"
        return f"{self.agreed}; kappa {kappa}"


def agreement(items: Sequence[Sequence[tuple[str, str]]]) -> Agreement:
    """Compare the labels of two raters.

    Args:
        items: for each item, one or more pairs of labels: the first rater's and the second's. The labels of an item
            depend on each other, so the intervals count items, not labels.

    Raises:
        ValueError: there is no item, or an item has no label.
    """
    if not items or not all(items):
        raise ValueError("agreement needs items that both raters labelled, and there is none")
    pairs = [pair for item in items for pair in item]
    share = sum(first == second for first, second in pairs) / len(pairs)
    low, high = wilson_interval(share, len(items), _Z)
    mine, other = Counter(first for first, _ in pairs), Counter(second for _, second in pairs)
    chance = sum(count * other[label] for label, count in mine.items()) / len(pairs) ** 2
    agreed = Rate(sum(first == second for first, second in pairs), len(pairs), low, high)
    if chance == 1:
        return Agreement(agreed, None, 0.0, 0.0)
    kappa, kappa_low, kappa_high = ((value - chance) / (1 - chance) for value in (share, low, high))
    return Agreement(agreed, kappa, kappa_low, kappa_high)
