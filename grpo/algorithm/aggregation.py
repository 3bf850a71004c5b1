"""Aggregate token losses: compute a weight for each completion and a global denominator.

The loss of a batch is the sum of (weight x loss) over all tokens, divided by the denominator. Weights and denominator
are known before the batch is split over ranks and microbatches. Therefore no split changes the gradient.

Every function takes `lengths`, the number of tokens that carry loss for each group and completion, possibly 0. It
returns the weight of a token for each group and completion, 0 if the length is 0. It also returns the denominator,
which is 0 if no token carries loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

# Weights of each completion's tokens, and the denominator.
Weighting = tuple[list[list[float]], float]


def token_mean(lengths: Sequence[Sequence[int]]) -> Weighting:
    """Every token has the same weight; the denominator is the number of tokens.

    DAPO, Yu et al. 2025 (arXiv:2503.14476), equation 8.
    """
    return _equal(lengths), float(sum(map(sum, lengths)))


def sequence_mean(lengths: Sequence[Sequence[int]]) -> Weighting:
    """Every completion has the same weight (a token has 1 / length); the denominator is the number of completions.

    GRPO, Shao et al. 2024 (arXiv:2402.03300), equation 3.
    """
    return [[1 / length if length else 0.0 for length in group] for group in lengths], float(_completions(lengths))


def constant(lengths: Sequence[Sequence[int]], *, length_divisor: int) -> Weighting:
    """Every token has the same weight; the denominator is the number of completions x `length_divisor`.

    Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783), section 3.2.
    """
    return _equal(lengths), _completions(lengths) * float(length_divisor)


def prompt_mean(lengths: Sequence[Sequence[int]]) -> Weighting:
    """Every prompt has the same weight (a token has 1 / tokens of the group); the denominator is the number of prompts.

    A prompt whose group has no token is not counted.

    Khatri et al. 2025, ScaleRL (arXiv:2510.13786).
    """
    weights = [[1 / sum(group) if length else 0.0 for length in group] for group in lengths]
    return weights, float(sum(any(group) for group in lengths))


def _equal(lengths: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[1.0 if length else 0.0 for length in group] for group in lengths]


def _completions(lengths: Sequence[Sequence[int]]) -> int:
    return sum(length > 0 for group in lengths for length in group)


# The functions by their names in the config.
BUILT_IN: Mapping[str, Callable[..., Weighting]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant": constant,
    "prompt_mean": prompt_mean,
}
