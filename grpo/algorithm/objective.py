"""Compute the configured objective of a microbatch. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.algorithm import advantages, losses, mismatch
from grpo.algorithm.choices import kl_estimate, looks_at_sequences, policy_loss
from grpo.algorithm.losses import PolicyLoss, Sequences
from grpo.algorithm.packing import Microbatch
from grpo.algorithm.transfer import on_device
from grpo.config.algorithm import AlgorithmConfig
from grpo.types import Group

# Names of the sums over tokens that carry loss. Only `loss` uses the weights of the tokens.
SUMS = (
    "loss",
    "tokens",
    "entropy",
    "clip_low_share",
    "clip_high_share",
    "kl_reference",
    "mismatch_kl",
    "importance_weight",
    "masked_share",
    "ratio",
    "ratio_squared",
)
# Counts of several microbatches and ranks can be added, but quantiles cannot. So for quantiles of the ratio, tokens are
# counted in bins of the logarithm of the ratio. Values beyond the limit count in the first or last bin.
LOG_RATIO_LIMIT, LOG_RATIO_BINS = 5.0, 2001
# The exponential of this value is finite in float32.
FINITE_LOG_RATIO = 80.0


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms that a microbatch adds to an optimizer step.

    Attributes:
        loss_sum: weighted sum of the loss, a scalar with gradient.
        sums: float64 [len(SUMS)], detached.
        ratio_max: float64 [1], the largest ratio before any clamp.
        log_ratios: float64 [LOG_RATIO_BINS], number of tokens with a log-ratio in each bin.
    """

    loss_sum: Tensor
    sums: Tensor
    ratio_max: Tensor
    log_ratios: Tensor


def carries_loss(algorithm: AlgorithmConfig, groups: Sequence[Group], rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Select the rollouts that count in the loss and in its denominator: bool [P, G].

    These are the rollouts with a reward. `overlong_filter` removes completions that end at the length limit. If there
    are refill rounds, groups without variance are also removed, because other groups replace them (DAPO,
    arXiv:2503.14476, equation 11).
    """
    carries_PG = valid_PG.clone()
    if algorithm.refill_rounds:
        carries_PG &= advantages.informative_groups(rewards_PG, valid_PG)[:, None]
    if algorithm.overlong_filter:
        for row, group in enumerate(groups):
            for column, rollout in enumerate(group.rollouts):
                if rollout.completion.finish_reason == "length":
                    carries_PG[row, column] = False
    return carries_PG


def supervised_terms(batch: Microbatch, logprobs_T: Tensor, entropy_T: Tensor) -> Terms:
    """Compute the negative log-likelihood of the responses."""
    weights_T = batch.weights_T
    loss_sum = -(logprobs_T * weights_T).sum()
    sums = logprobs_T.new_zeros(len(SUMS), dtype=torch.float64)
    sums[0], sums[1], sums[2] = loss_sum.detach(), weights_T.sum(), (entropy_T * weights_T).sum()
    return Terms(loss_sum, sums, sums.new_zeros(1), sums.new_zeros(LOG_RATIO_BINS))


def policy_terms(
    algorithm: AlgorithmConfig, batch: Microbatch, logprobs_T: Tensor, entropy_T: Tensor, reference_T: Tensor | None
) -> Terms:
    """Compute the policy's loss. It includes the correction for a mismatch, the KL penalty and the entropy bonus.

    Args:
        algorithm: section with the choices.
        batch: microbatch with weights, advantages and the log-probabilities of sampler and proximal policy.
        logprobs_T: log-probabilities under the trained policy, with gradient.
        entropy_T: entropy of the policy at each token, with gradient if there is a bonus.
        reference_T: log-probabilities under the reference if the loss has a KL penalty, otherwise None.
    """
    mask_T = batch.weights_T > 0
    proximal_T = batch.old_logprobs_T if batch.proximal_logprobs_T is None else batch.proximal_logprobs_T
    sequences = _sequences(batch, mask_T) if looks_at_sequences(algorithm) else None
    weight_T, kept_T = _correction(algorithm, batch, logprobs_T, sequences)
    trained_T = logprobs_T
    if kept_T is not None:
        # The ratio of a masked token must be finite, because 0 times infinity is NaN. A masked token has no gradient.
        finite_T = torch.minimum(logprobs_T.detach(), proximal_T + FINITE_LOG_RATIO)
        trained_T = torch.where(kept_T, logprobs_T, finite_T)
    policy = policy_loss(algorithm, trained_T, proximal_T, batch.advantages_T, sequences)
    loss_T = policy.loss_T
    if weight_T is not None:
        loss_T = loss_T * weight_T
    if kept_T is not None:
        loss_T = loss_T * kept_T
    kl_T = None
    if reference_T is not None and algorithm.kl != "none":
        # Outside the mask, tokens are filler that was not sampled, so the ratio may be infinite. 0 times infinity is
        # NaN.
        reference_T = torch.where(mask_T, reference_T, logprobs_T.detach())
        kl_T = kl_estimate(algorithm, logprobs_T, reference_T)
        penalty_T = losses.corrected_kl(kl_T, logprobs_T, batch.old_logprobs_T) if algorithm.kl_corrected else kl_T
        loss_T = loss_T + algorithm.kl_coefficient * penalty_T
    if algorithm.entropy_coefficient:
        loss_T = loss_T - algorithm.entropy_coefficient * entropy_T
    loss_sum = (loss_T * batch.weights_T).sum()
    with torch.no_grad():
        return _measured(batch, mask_T, loss_sum, policy, logprobs_T, entropy_T, kl_T, weight_T, kept_T)


def _sequences(batch: Microbatch, mask_T: Tensor) -> Sequences:
    count = len(batch.lengths_S)
    index_T = torch.repeat_interleave(torch.arange(count), batch.lengths_S)
    return Sequences(on_device(index_T, mask_T.device), mask_T, count)


def _correction(
    algorithm: AlgorithmConfig, batch: Microbatch, logprobs_T: Tensor, sequences: Sequences | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the importance weights and the mask of kept tokens.

    Both use the ratio of the proximal policy to the sampler. If there is no separate proximal policy, they use the
    ratio of the present policy to the sampler.
    """
    if sequences is None:
        return None, None
    start_T = logprobs_T.detach() if batch.proximal_logprobs_T is None else batch.proximal_logprobs_T
    log_ratio_T = start_T - batch.old_logprobs_T
    weight_T = kept_T = None
    if algorithm.importance_weight != "none":
        weight_T = mismatch.truncated_weight(
            log_ratio_T, sequences, over=algorithm.importance_weight, cap=algorithm.importance_cap
        )
    if algorithm.mismatch_mask != "none":
        kept_T = mismatch.kept(
            log_ratio_T, sequences, over=algorithm.mismatch_mask, low=algorithm.mask_low, high=algorithm.mask_high
        )
    return weight_T, kept_T


def _measured(
    batch: Microbatch,
    mask_T: Tensor,
    loss_sum: Tensor,
    policy: PolicyLoss,
    logprobs_T: Tensor,
    entropy_T: Tensor,
    kl_T: Tensor | None,
    weight_T: Tensor | None,
    kept_T: Tensor | None,
) -> Terms:
    ratio_T = torch.exp(logprobs_T - batch.old_logprobs_T)
    rows: list[Tensor | None] = [
        entropy_T,
        policy.clipped_low_T,
        policy.clipped_high_T,
        kl_T,
        losses.k3_kl(batch.old_logprobs_T, logprobs_T),
        weight_T,
        None if kept_T is None else ~kept_T,
        ratio_T,
        ratio_T.square(),
    ]
    nothing = loss_sum.new_zeros((), dtype=torch.float64)
    summed = [nothing if row is None else torch.where(mask_T, row, 0).sum(dtype=torch.float64) for row in rows]
    sums = torch.stack([loss_sum.double(), mask_T.sum().double(), *summed])
    # A selection by `mask_T` would make the host wait for its size. The histogram ignores values beyond the limit.
    log_ratios = policy.ratio_T.log().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    log_ratios = torch.where(mask_T, log_ratios, 2 * LOG_RATIO_LIMIT)
    return Terms(
        loss_sum,
        sums,
        torch.where(mask_T, policy.ratio_T, 0).max().double()[None],
        torch.histc(log_ratios, LOG_RATIO_BINS, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).double(),
    )
