"""The objective. Pure functions of tensors: one value per token, summed and divided by the learner.

Every function returns values per token, not a mean: the denominator is the number of trained tokens in the whole
global batch, which only the caller knows, so that the gradient does not depend on how the batch is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Values per token, each of shape [T].

    Attributes:
        loss_T: the loss to be minimised.
        ratio_T: importance ratio before any clamp, detached.
        clipped_low_T: bool, the lower edge cut the gradient.
        clipped_high_T: bool, the upper edge cut the gradient.
    """

    loss_T: Tensor
    ratio_T: Tensor
    clipped_low_T: Tensor
    clipped_high_T: Tensor


def clipped_policy_loss(
    logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """The clipped surrogate, token by token.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprob - old_logprob): PPO, Schulman et al. 2017
    (arXiv:1707.06347), equation 7; two edges: DAPO, Yu et al. 2025 (arXiv:2503.14476), equation 10.

    Args:
        logprobs_T: under the policy being trained, with gradient.
        old_logprobs_T: under the policy that sampled.
        advantages_T: one for each token.
        clip_low: distance of the lower edge from 1, in [0, 1].
        clip_high: distance of the upper edge from 1.
    """
    ratio_T = torch.exp(logprobs_T - old_logprobs_T)
    bounded_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    loss_T = -torch.minimum(ratio_T * advantages_T, bounded_T * advantages_T)
    ratio_T = ratio_T.detach()
    return PolicyLoss(
        loss_T=loss_T,
        ratio_T=ratio_T,
        clipped_low_T=(ratio_T < 1 - clip_low) & (advantages_T < 0),
        clipped_high_T=(ratio_T > 1 + clip_high) & (advantages_T > 0),
    )


def k3_kl(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference), token by token; never negative.

    exp(d) - d - 1 with d = reference_logprob - logprob: Schulman 2020 (joschu.net/blog/kl-approx.html), as in GRPO's
    equation 4 (arXiv:2402.03300).
    """
    difference_T = reference_logprobs_T - logprobs_T
    return torch.exp(difference_T) - difference_T - 1
