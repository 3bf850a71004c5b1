"""Aggregation: how tokens are weighted against each other, as one weight per completion and one global denominator.

loss = sum over all tokens of weight x loss / denominator. Both are known before the batch is split over ranks and
microbatches, which is why no split changes the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def aggregation_weights(
    lengths: Sequence[Sequence[int]],
    aggregation: Literal["token_mean", "sequence_mean", "constant", "prompt_mean"],
    *,
    length_divisor: int,
) -> tuple[list[list[float]], float]:
    """Weights of a token of each completion, and the denominator.

    - `token_mean`: every token counts alike; denominator: tokens. DAPO, Yu et al. 2025 (arXiv:2503.14476), equation 8.
    - `sequence_mean`: every completion counts alike, a token 1 / its length; denominator: completions. GRPO, Shao et
      al. 2024 (arXiv:2402.03300), equation 3.
    - `constant`: every token counts alike; denominator: completions x `length_divisor`. Dr. GRPO, Liu et al. 2025
      (arXiv:2503.20783), section 3.2.
    - `prompt_mean`: every prompt counts alike, a token 1 / the tokens of its group; denominator: prompts with a
      token. Khatri et al. 2025, ScaleRL (arXiv:2510.13786).

    Args:
        lengths: [group][completion] -> completion tokens that carry loss, 0 where a completion carries none.
        aggregation: which.
        length_divisor: of `constant`.

    Returns:
        [group][completion] -> weight of each of its tokens, 0 where it has none; denominator, 0 where nothing counts.
    """
    completions = sum(length > 0 for group in lengths for length in group)
    if aggregation == "sequence_mean":
        return [[1 / length if length else 0.0 for length in group] for group in lengths], float(completions)
    if aggregation == "prompt_mean":
        return [
            [1 / sum(group) if length else 0.0 for length in group] for group in lengths
        ], float(sum(any(group) for group in lengths))  # fmt: skip
    weights = [[1.0 if length else 0.0 for length in group] for group in lengths]
    tokens = float(sum(map(sum, lengths)))
    return weights, completions * float(length_divisor) if aggregation == "constant" else tokens
