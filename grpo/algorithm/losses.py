"""The terms of the objective. Pure functions of tensors.

Every function returns a value for each token, not a mean. The learner weights, sums and divides the values. Weights and
denominator (`grpo.algorithm.aggregation`) come from the whole global batch, so the gradient does not depend on the
split of the batch. A value of a whole sequence is repeated at each token of the sequence. If the weight of each token
is 1 / length, such a value counts once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")


@dataclass(frozen=True, slots=True)
class Sequences:
    """The sequence of each token in a packed microbatch.

    Attributes:
        index_T: int64, number of the token's sequence.
        mask_T: bool, True if the token carries loss.
        count: number of sequences in the microbatch.
    """

    index_T: Tensor
    mask_T: Tensor
    count: int

    def sum(self, values_T: Tensor) -> Tensor:
        """Sum over each sequence's tokens that carry loss. The sum is repeated at each token, and differentiable."""
        sums_S = values_T.new_zeros(self.count).index_add(0, self.index_T, torch.where(self.mask_T, values_T, 0.0))
        return sums_S[self.index_T]

    def mean(self, values_T: Tensor) -> Tensor:
        """Mean over each sequence's tokens that carry loss. The mean is repeated at each token, and differentiable."""
        return self.sum(values_T) / self.sum(torch.ones_like(values_T)).clamp(min=1)


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Values for each token. Each tensor has the shape [T].

    Attributes:
        loss_T: loss to minimise.
        ratio_T: importance ratio before any clamp, detached.
        clipped_low_T: bool, True if clipping at the lower edge removed the gradient or, for `cispo`, limited the
            weight.
        clipped_high_T: bool, True if clipping at the upper edge removed the gradient or, for `cispo`, limited the
            weight.
    """

    loss_T: Tensor
    ratio_T: Tensor
    clipped_low_T: Tensor
    clipped_high_T: Tensor


def clipped_policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """The clipped surrogate, token by token.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprob - old_logprob): PPO, Schulman et al. 2017
    (arXiv:1707.06347), equation 7. The two separate edges are from DAPO, Yu et al. 2025 (arXiv:2503.14476), equation
    10. If `dual_clip` is set and A < 0, the loss is at most -dual_clip A: Ye et al. 2020 (arXiv:1912.09729).

    Args:
        logprobs_T: log-probabilities under the trained policy, with gradient.
        old_logprobs_T: log-probabilities under the sampler or the proximal policy.
        advantages_T: advantage of each token.
        clip_low: distance of the lower edge from 1, in [0, 1].
        clip_high: distance of the upper edge from 1.
        dual_clip: ratio at which the loss of a completion with A < 0 stops growing. It must be above 1 + clip_high.
    """
    ratio_T = torch.exp(logprobs_T - old_logprobs_T)
    return _clipped(ratio_T, advantages_T, clip_low, clip_high, dual_clip)


def sequence_policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    sequences: Sequences,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """The clipped surrogate with one ratio for a sequence: the geometric mean of its tokens' ratios.

    s_i = exp(mean_t(logprob_t - old_logprob_t)): GSPO, Zheng et al. 2025 (arXiv:2507.18071), equations 5 and 7.
    """
    log_ratio_T = sequences.mean(logprobs_T - old_logprobs_T)
    return _clipped(torch.exp(log_ratio_T), advantages_T, clip_low, clip_high, dual_clip)


def sequence_token_policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    sequences: Sequences,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """The clipped surrogate with one ratio for a sequence, but a separate gradient and advantage for each token.

    s_it = sg[s_i] pi_t / sg[pi_t], with the same value as s_i: GSPO-token, Zheng et al. 2025 (arXiv:2507.18071),
    equations 13 and 14.
    """
    mean_T = sequences.mean((logprobs_T - old_logprobs_T).detach())
    log_ratio_T = mean_T + logprobs_T - logprobs_T.detach()
    return _clipped(torch.exp(log_ratio_T), advantages_T, clip_low, clip_high, dual_clip)


def cispo_loss(
    logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """REINFORCE with a clipped weight: -sg[clip(r, 1 - clip_low, 1 + clip_high)] A logprob.

    CISPO, MiniMax 2025 (arXiv:2506.13585), equations 4 and 5. Every token keeps its gradient; clipping only limits the
    weight of a token. Only the gradient of the loss has a meaning. The value of the loss does not estimate the return.
    """
    ratio_T = torch.exp(logprobs_T.detach() - old_logprobs_T)
    weight_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    return PolicyLoss(
        loss_T=-weight_T * advantages_T * logprobs_T,
        ratio_T=ratio_T,
        clipped_low_T=ratio_T < 1 - clip_low,
        clipped_high_T=ratio_T > 1 + clip_high,
    )


def geometric_policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    sequences: Sequences,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Each token's ratio is clipped; their geometric mean is the sequence's ratio.

    The loss is -A exp(mean_t c_t), with l_t = logprob_t - old_logprob_t. If A > 0, c_t = min(l_t, log(1 + clip_high)).
    If A < 0, c_t = max(l_t, log(1 - clip_low)). GMPO, Zhao et al. 2025 (arXiv:2507.20673).
    """
    difference_T = logprobs_T - old_logprobs_T
    # If clip_low is 1, the lower edge is log(0) = -inf, so no value is clipped at this edge.
    low, high = _log(1 - clip_low), _log(1 + clip_high)
    bounded_T = torch.where(advantages_T > 0, difference_T.clamp(max=high), difference_T.clamp(min=low))
    detached_T = difference_T.detach()
    return PolicyLoss(
        loss_T=-advantages_T * torch.exp(sequences.mean(bounded_T)),
        ratio_T=detached_T.exp(),
        clipped_low_T=(detached_T < low) & (advantages_T < 0),
        clipped_high_T=(detached_T > high) & (advantages_T > 0),
    )


@functools.cache
def _log(edge: float) -> float:
    """The logarithm in float32, as the logarithms of the ratios have it; -inf at 0."""
    return torch.tensor(edge, device="cpu").log().item()


def soft_policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    *,
    soft_temperature_positive: float,
    soft_temperature_negative: float,
) -> PolicyLoss:
    """A smooth gate instead of clipping: -A (4 / tau) sigmoid(tau (r - 1)).

    tau is `soft_temperature_positive` if A > 0, else `soft_temperature_negative`: SAPO, Gao et al. 2025
    (arXiv:2511.20347). At r = 1, the gradient equals the gradient of -A r. On both sides of r = 1, the gradient
    decreases, but is never 0.
    """
    ratio_T = torch.exp(logprobs_T - old_logprobs_T)
    tau_T = torch.where(advantages_T > 0, soft_temperature_positive, soft_temperature_negative)
    nothing_T = torch.zeros_like(ratio_T, dtype=torch.bool)
    return PolicyLoss(
        loss_T=-advantages_T * torch.sigmoid(tau_T * (ratio_T - 1)) * (4 / tau_T),
        ratio_T=ratio_T.detach(),
        clipped_low_T=nothing_T,
        clipped_high_T=nothing_T,
    )


def _clipped(
    ratio_T: Tensor, advantages_T: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> PolicyLoss:
    bounded_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    loss_T = -torch.minimum(ratio_T * advantages_T, bounded_T * advantages_T)
    ratio_T = ratio_T.detach()
    clipped_high_T = (ratio_T > 1 + clip_high) & (advantages_T > 0)
    if dual_clip is not None:
        loss_T = torch.where(advantages_T < 0, torch.minimum(loss_T, -dual_clip * advantages_T), loss_T)
        clipped_high_T = clipped_high_T | ((ratio_T > dual_clip) & (advantages_T < 0))
    return PolicyLoss(
        loss_T=loss_T,
        ratio_T=ratio_T,
        clipped_low_T=(ratio_T < 1 - clip_low) & (advantages_T < 0),
        clipped_high_T=clipped_high_T,
    )


# Estimates of KL(policy || reference) at each token that the policy sampled, with d = reference_logprob - logprob. If
# an estimate is used as a loss on the policy's samples, its expected gradient is 0 for k1, the gradient of
# KL(policy || reference) for k2, and the gradient of KL(reference || policy) for k3: Tang and Munos 2025
# (arXiv:2506.09477).
def k1_kl(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """-d with d = reference_logprob - logprob; its value is unbiased.

    Schulman 2020 (joschu.net/blog/kl-approx.html).
    """
    return logprobs_T - reference_logprobs_T


def k2_kl(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """d^2 / 2 with d = reference_logprob - logprob; never negative.

    Schulman 2020 (joschu.net/blog/kl-approx.html).
    """
    return (logprobs_T - reference_logprobs_T).square() / 2


def k3_kl(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference_logprob - logprob; its value is unbiased and never negative.

    Schulman 2020 (joschu.net/blog/kl-approx.html), as in GRPO's equation 4 (arXiv:2402.03300).
    """
    difference_T = reference_logprobs_T - logprobs_T
    # For differences below 1e-3, exp(d) - d - 1 would be only rounding error in float32, so use expm1.
    return torch.expm1(difference_T) - difference_T


def corrected_kl(kl_T: Tensor, logprobs_T: Tensor, rollout_logprobs_T: Tensor) -> Tensor:
    """Multiply the estimate by the ratio of policy to sampler. The gradient flows through the ratio too.

    The result is (pi / pi_rollout) k. For k1 and for k3, its expectation over the sampler is the divergence, and its
    expected gradient is the gradient of the divergence: DeepSeek-AI 2025, DeepSeek-V3.2 (arXiv:2512.02556); Tang and
    Munos 2025 (arXiv:2506.09477).
    """
    return torch.exp(logprobs_T - rollout_logprobs_T) * kl_T


# The functions by their names in the config.
RATIOS: Mapping[str, Callable[..., PolicyLoss]] = {
    "token": clipped_policy_loss,
    "sequence": sequence_policy_loss,
    "sequence_token": sequence_token_policy_loss,
    "cispo": cispo_loss,
    "geometric": geometric_policy_loss,
    "soft": soft_policy_loss,
}
KLS: Mapping[str, Callable[..., Tensor]] = {"k1": k1_kl, "k2": k2_kl, "k3": k3_kl}
