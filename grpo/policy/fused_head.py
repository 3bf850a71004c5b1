"""The output head's operators beside its matrix products, fused by torch.compile into one kernel each, for a GPU.

In eager PyTorch these are a dozen operators, and each reads and writes all logits of a chunk in float32. The compiled
functions read the logits in the weights' number format, compute in float32, and write only what is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def statistics(
    logits_CV: Tensor, targets_C: Tensor, temperature: Tensor, entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the log-probabilities of the targets, the log-sum-exps, and the entropies if asked for: float32 [C].

    Args:
        logits_CV: logits in any number format.
        targets_C: token ids.
        temperature: divisor of the logits, a tensor without dimensions. A number would be compiled in.
        entropy: whether to compute entropies.
    """
    scaled_CV = logits_CV.float() / temperature
    # The largest logit is subtracted before anything is summed, so a large logit does not cost digits.
    largest_C = scaled_CV.amax(dim=-1)
    shifted_CV = scaled_CV - largest_C[:, None]
    weights_CV = shifted_CV.exp()
    sum_C = weights_CV.sum(dim=-1)
    log_sum_C = sum_C.log()
    chosen_C = logits_CV.gather(1, targets_C[:, None])[:, 0].float() / temperature - largest_C
    entropy_C = log_sum_C - (weights_CV * shifted_CV).sum(dim=-1) / sum_C if entropy else None
    return chosen_C - log_sum_C, largest_C + log_sum_C, entropy_C


def replace_by_gradient(
    logits_CV: Tensor,
    targets_C: Tensor,
    temperature: Tensor,
    log_total_C: Tensor,
    gradient_C: Tensor,
    entropy_C: Tensor | None,
    entropy_gradient_C: Tensor | None,
) -> None:
    """Overwrite logits by their gradient: d logprob / d logit_v = [v is the target] - p_v, over the temperature.

    With entropies: d entropy / d logit_v = -p_v (log p_v + entropy), over the temperature.

    Args:
        logits_CV: logits, which the gradient replaces in the same number format.
        targets_C: token ids.
        temperature: divisor of the logits, a tensor without dimensions.
        log_total_C: log-sum-exps from `statistics`.
        gradient_C: gradient of the log-probabilities.
        entropy_C: entropies, if they have a gradient.
        entropy_gradient_C: gradient of the entropies, if they have one.
    """
    log_CV = logits_CV.float() / temperature - log_total_C[:, None]
    factor_CV = gradient_C[:, None]
    if entropy_C is not None and entropy_gradient_C is not None:
        factor_CV = factor_CV + entropy_gradient_C[:, None] * (log_CV + entropy_C[:, None])
    ids_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    of_target_CV = torch.where(ids_V == targets_C[:, None], gradient_C[:, None], 0.0)
    logits_CV.copy_((of_target_CV - log_CV.exp() * factor_CV) / temperature)


@dataclass(frozen=True, slots=True)
class FusedHead:
    """The two functions of a chunk, `statistics` and `replace_by_gradient`."""

    statistics: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor | None]]
    replace_by_gradient: Callable[..., None]


@functools.cache
def compiled_head(backend: str = "inductor") -> FusedHead:
    """Return the compiled functions. They compile at their first call, for chunks of any size."""
    return FusedHead(
        torch.compile(statistics, dynamic=True, fullgraph=True, backend=backend),
        torch.compile(replace_by_gradient, dynamic=True, fullgraph=True, backend=backend),
    )
