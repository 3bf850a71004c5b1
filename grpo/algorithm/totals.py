"""Sum the terms of an optimizer step over microbatches and ranks, and compute metrics from the sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.algorithm.objective import LOG_RATIO_BINS, LOG_RATIO_LIMIT, SUMS, Terms
from grpo.config.algorithm import AlgorithmConfig

QUANTILES = {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99}


class Totals:
    """Sums over microbatches. The ranks reduce `added` by sum and `largest` by maximum.

    The sums stay on the device of the terms, so that the host does not wait for each microbatch. `read` moves them.
    """

    def __init__(
        self, device: torch.device | None = None, names: Sequence[str] = SUMS, bins: int = LOG_RATIO_BINS
    ) -> None:
        """Start at zero.

        Args:
            device: device of the terms; by default the CPU.
            names: names of the sums of the terms.
            bins: number of bins of the terms' log-ratios; 0 if the objective has no ratio.
        """
        self._names = names
        self.added = torch.zeros(len(names) + bins, dtype=torch.float64, device=device)
        self.largest = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, terms: Terms) -> None:
        """Add the terms of a microbatch."""
        self.added += torch.cat([terms.sums, terms.log_ratios])
        self.largest = torch.maximum(self.largest, terms.ratio_max)

    def read(self) -> None:
        """Move the sums to the host, in one copy. Call this once, after the last microbatch."""
        whole = torch.cat([self.added, self.largest]).cpu()
        self.added, self.largest = torch.split(whole, [len(self.added), 1])

    def sums(self) -> dict[str, float]:
        """Return the sums by their names, after `read`."""
        return dict(zip(self._names, self.added[: len(self._names)].tolist(), strict=True))

    def metrics(self, denominator: float, algorithm: AlgorithmConfig | None) -> dict[str, float]:
        """Return the loss divided by `denominator`, and the means of the other terms over the computed tokens.

        Terms that are off in the configuration have no metrics.
        """
        totals = self.sums()
        metrics = {"loss": totals.pop("loss") / denominator}
        tokens = totals.pop("tokens")
        # If the step has only filler, there are no tokens, so the other metrics do not exist.
        if not tokens:
            return metrics
        ratio, squared = totals.pop("ratio"), totals.pop("ratio_squared")
        metrics |= {name: total / tokens for name, total in totals.items()}
        if algorithm is None:
            return {name: metrics[name] for name in ("loss", "entropy")}
        if not algorithm.kl_in_loss:
            del metrics["kl_reference"]
        if algorithm.importance_weight == "none":
            del metrics["importance_weight"]
        if algorithm.mismatch_mask == "none":
            del metrics["masked_share"]
        # Kish's effective sample size of the ratios between policy and sampler, as a share of the tokens.
        metrics["effective_sample_share"] = ratio * ratio / (tokens * squared)
        metrics["ratio_max"] = float(self.largest)
        return metrics | ratio_quantiles(self.added[len(SUMS) :])


def ratio_quantiles(log_ratios: Tensor) -> dict[str, float]:
    """Compute quantiles of the ratio from counts in bins of its logarithm. The bin width is half a percent.

    Args:
        log_ratios: counts, [LOG_RATIO_BINS]. At least one count must be above 0.
    """
    width = 2 * LOG_RATIO_LIMIT / LOG_RATIO_BINS
    reached = log_ratios.cumsum(0)
    return {
        name: math.exp((int(torch.searchsorted(reached, share * reached[-1])) + 0.5) * width - LOG_RATIO_LIMIT)
        for name, share in QUANTILES.items()
    }
