"""The tolerance of a push's proof, from the rounding that is measured before the first push.

Two engines compute the log-probabilities of equal weights in different orders of summation. In bfloat16 the difference
depends on the policy, the GPU and the attention kernels, so no constant fits all runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from grpo.config import Dtype
from grpo.weights.sync import TOLERANCES, WeightMismatch

# A push may differ by this multiple of the rounding of the first probe, because other tokens round differently.
_SPREAD = 3.0
# Beyond this multiple of the preset tolerance, a difference is no rounding.
_ABSURD = 10.0


def max_or_nan(differences: Iterable[float]) -> float:
    """Return the largest difference; NaN if a difference is NaN. `max` may ignore a NaN."""
    values = list(differences)
    return math.nan if any(math.isnan(value) for value in values) else max(values)


@dataclass(frozen=True, slots=True)
class Rounding:
    """The difference of log-probabilities between learner and generators that hold the same weights.

    Attributes:
        nats: largest of the replicas' mean absolute differences, in nats.
        dtype: element type of the policy.
    """

    nats: float
    dtype: Dtype

    def __str__(self) -> str:
        return (
            f"before the first push, learner and generators differ by {self.nats:.2g} nats for each probed token "
            f"({self.dtype})"
        )

    def problem(self, chosen: float | None) -> Exception | None:
        """Return the error if this difference is no rounding, or if the chosen tolerance is below it; or None.

        Args:
            chosen: `weight_sync.tolerance`, in nats, or None.
        """
        limit = _ABSURD * TOLERANCES[self.dtype]
        # NaN must also be a problem.
        if not self.nats <= max(limit, chosen or 0.0):
            return WeightMismatch(
                f"{self}. Both have loaded the same policy, and rounding stays below {limit:.2g} nats. So they hold "
                "different weights, or compute differently. Check that policy.path is the same on every node, that its "
                "config.json belongs to its weights, and that vLLM computes this architecture in policy.dtype. If the "
                "difference is harmless, set weight_sync.tolerance above it"
            )
        if chosen is not None and chosen < self.nats:
            return ValueError(
                f"weight_sync.tolerance={chosen:g}: {self} with the same weights, so every push would fail; set it to "
                f"{_SPREAD * self.nats:.2g} or more, or remove it"
            )
        return None

    def tolerance(self, chosen: float | None) -> float:
        """Return the largest difference that passes after a push: the chosen one, the preset one or 3 x the rounding.

        Raises:
            WeightMismatch: the difference is too large for rounding.
            ValueError: the chosen tolerance is below the rounding.
        """
        if problem := self.problem(chosen):
            raise problem
        return chosen or max(TOLERANCES[self.dtype], _SPREAD * self.nats)
