"""Correcting for a sampler that is not the policy the learner started the step from. Pure functions of tensors.

Engines compute the same weights a little differently, and a batch may be of an older version. All weights here are
constants to the gradient; they multiply the policy's loss and leave weights and denominator of the aggregation alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo.algorithm.losses import Sequences


def truncated_weight(
    log_ratio_T: Tensor, sequences: Sequences, *, over: Literal["token", "sequence"], cap: float
) -> Tensor:
    """min(w, cap), w the ratio of a token's probability, or of its whole sequence's.

    Truncated importance sampling, Ionides 2008, in this place Yao et al. 2025 ("Your efficient RL framework secretly
    brings you off-policy RL training") per token, and Liu et al. 2025 ("When speed kills stability") per sequence.
    With w = pi_proximal / pi_behaviour it is the weight of decoupled PPO, Hilton et al. 2022 (arXiv:2110.00641),
    as AReaL uses it, Fu et al. 2025 (arXiv:2505.24298).

    Args:
        log_ratio_T: logprob under the proximal policy - logprob under the sampler; its gradient is not used.
        sequences: which tokens belong together.
        over: whose ratio.
        cap: largest weight.
    """
    log_ratio_T = log_ratio_T.detach()
    return torch.exp(log_ratio_T if over == "token" else sequences.sum(log_ratio_T)).clamp(max=cap)


def kept(
    log_ratio_T: Tensor,
    sequences: Sequences,
    *,
    over: Literal["token", "sequence", "geometric"],
    low: float,
    high: float,
) -> Tensor:
    """Which tokens are kept: those whose ratio lies in [low, high].

    Per token: IcePop, Ling team 2025 (arXiv:2510.18855). Per sequence, by the product of its ratios or by
    their geometric mean, which does not grow with the length: Liu et al. 2025 ("When speed kills stability").

    Args:
        log_ratio_T: logprob under the learner - logprob under the sampler; its gradient is not used.
        sequences: which tokens belong together.
        over: whose ratio.
        low: smallest ratio kept.
        high: largest ratio kept.

    Returns:
        bool [T].
    """
    log_ratio_T = log_ratio_T.detach()
    if over == "sequence":
        log_ratio_T = sequences.sum(log_ratio_T)
    elif over == "geometric":
        log_ratio_T = sequences.mean(log_ratio_T)
    ratio_T = torch.exp(log_ratio_T)
    return (ratio_T >= low) & (ratio_T <= high)
