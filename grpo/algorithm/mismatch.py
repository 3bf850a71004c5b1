"""Correct for differences between the sampler and the learner's policy at the start of a step. Pure tensor functions.

There are two causes of differences. From the same weights, the engines compute slightly different probabilities than
the learner. Also, an older version of the policy may have sampled the batch. The importance weights here have no
gradient. They multiply the policy's loss, and do not change the aggregation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo.algorithm.losses import Sequences


def truncated_weight(
    log_ratio_T: Tensor, sequences: Sequences, *, over: Literal["token", "sequence"], cap: float
) -> Tensor:
    """Return min(w, cap); w is the probability ratio of a token, or of its whole sequence.

    Truncated importance sampling is from Ionides 2008. Yao et al. 2025 ("Your efficient RL framework secretly brings
    you off-policy RL training") use it per token for this purpose; Liu et al. 2025 ("When speed kills stability") use
    it per sequence. w = pi_proximal / pi_behaviour is the weight of decoupled PPO, Hilton et al. 2022
    (arXiv:2110.00641). AReaL also uses this weight, Fu et al. 2025 (arXiv:2505.24298).

    Args:
        log_ratio_T: logprob under the proximal policy minus logprob under the sampler; its gradient is not used.
        sequences: sequence of each token.
        over: unit of the ratio.
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
    """Select the tokens to keep: those with a ratio in [low, high].

    The ratio of each token is used by IcePop, Ling team 2025 (arXiv:2510.18855). The ratio of a sequence is used by Liu
    et al. 2025 ("When speed kills stability"). The ratio of a sequence is either the product of its tokens' ratios, or
    their geometric mean, which does not grow with the length.

    Args:
        log_ratio_T: logprob under the learner minus logprob under the sampler; its gradient is not used.
        sequences: sequence of each token.
        over: unit of the ratio.
        low: smallest ratio to keep.
        high: largest ratio to keep.

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
