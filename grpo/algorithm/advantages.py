"""Advantages: compare the reward of a completion with other rewards. Pure functions of tensors.

Every function takes two tensors [prompts, completions of a group]. `rewards_PG` is float; an element that is not valid
may have any value. `valid_PG` is bool; it is False if a verdict failed or the element is padding. A function returns
the advantages, float32 of the same shape. The advantage of an element that is not valid is exactly 0, and the element
does not count in any mean, deviation or number of completions. In a group with fewer than two valid rewards or without
variance, no comparison is possible. There, all functions except `reinforce_plus_plus` return 0.

`grpo check` and `grpo config` print the first line of a function's docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")

# A standard deviation of at most this value is a rounding error, so it counts as no variance.
ZERO_VARIANCE = 1e-6


@dataclass(frozen=True, slots=True)
class _Groups:
    """Statistics of the valid rewards of each group, in float64."""

    rewards_PG: Tensor
    valid_PG: Tensor
    count_P1: Tensor
    mean_P1: Tensor
    centred_PG: Tensor
    std_P1: Tensor
    informative_P1: Tensor

    def where_informative(self, advantages_PG: Tensor) -> Tensor:
        return torch.where(self.informative_P1 & self.valid_PG, advantages_PG, 0.0).float()


def _groups(rewards_PG: Tensor, valid_PG: Tensor) -> _Groups:
    if rewards_PG.shape != valid_PG.shape or rewards_PG.dim() != 2:
        raise ValueError(f"expected two [P, G] tensors, got {tuple(rewards_PG.shape)} and {tuple(valid_PG.shape)}")
    rewards_PG = torch.where(valid_PG, rewards_PG, 0.0).double()
    count_P1 = valid_PG.sum(dim=1, keepdim=True)
    mean_P1 = rewards_PG.sum(dim=1, keepdim=True) / count_P1.clamp(min=1)
    centred_PG = torch.where(valid_PG, rewards_PG - mean_P1, 0.0)
    std_P1 = (centred_PG.square().sum(dim=1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    informative_P1 = (count_P1 >= 2) & (std_P1 > ZERO_VARIANCE)
    return _Groups(rewards_PG, valid_PG, count_P1, mean_P1, centred_PG, std_P1, informative_P1)


def informative_groups(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Select the groups that have at least two valid rewards, not all equal: bool [P]."""
    return _groups(rewards_PG, valid_PG).informative_P1[:, 0]


def group_normalised(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) / std(r) over a group.

    GRPO, Shao et al. 2024 (arXiv:2402.03300), section 4.1.2, outcome supervision; std is the sample standard
    deviation (n - 1).
    """
    groups = _groups(rewards_PG, valid_PG)
    return groups.where_informative(groups.centred_PG / groups.std_P1.clamp(min=ZERO_VARIANCE))


def group_centred(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = r_i - mean(r) over a group.

    Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783), section 3.2.
    """
    groups = _groups(rewards_PG, valid_PG)
    return groups.where_informative(groups.centred_PG)


def leave_one_out(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = r_i - mean of the other rewards of its group = n / (n - 1) (r_i - mean(r)).

    RLOO, Ahmadian et al. 2024 (arXiv:2402.14740).
    """
    groups = _groups(rewards_PG, valid_PG)
    return groups.where_informative(groups.centred_PG * groups.count_P1 / (groups.count_P1 - 1).clamp(min=1))


def reinforce_plus_plus(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) / std(r) over the whole batch, regardless of groups.

    REINFORCE++, Hu et al. 2025 (arXiv:2501.03262), with a discount of 1. A group may have a single completion or no
    variance, because completions are compared with all groups. If the whole batch has no variance, every advantage
    is 0.
    """
    groups = _groups(rewards_PG, valid_PG)
    return _whitened(groups.rewards_PG, valid_PG)


def reinforce_plus_plus_baseline(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = (d_i - mean(d)) / std(d) over the whole batch, with d_i = r_i - mean of its group.

    REINFORCE++ with baseline, Hu et al. 2025 (arXiv:2501.03262). The mean of d is 0 up to rounding. A group without
    variance gets exactly 0.
    """
    groups = _groups(rewards_PG, valid_PG)
    return groups.where_informative(_whitened(groups.centred_PG, valid_PG))


def batch_normalised(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean of its group) / std of the rewards of the whole batch.

    Liu et al. 2025, "Part I: Tricks or Traps" (arXiv:2508.08221). The deviation is computed before the group's mean is
    subtracted; in `reinforce_plus_plus_baseline`, the deviation is computed after the subtraction.
    """
    groups = _groups(rewards_PG, valid_PG)
    count = valid_PG.sum()
    mean = groups.rewards_PG.sum() / count.clamp(min=1)
    spread_PG = torch.where(valid_PG, groups.rewards_PG - mean, 0.0)
    std = (spread_PG.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return groups.where_informative(groups.centred_PG / std.clamp(min=ZERO_VARIANCE))


def maxrl(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) / mean(r) over a group; 0 if all rewards are 0.

    MaxRL, Tajwar et al. 2026 (arXiv:2602.02710), algorithm 1, for rewards of 0 and 1. The gradient of log(success rate)
    is a series of terms grad(pass@k) / k. With a group of n completions, this advantage gives an unbiased estimate of
    the first n - 1 terms. The paper does not cover other rewards; this function uses the same formula for them.

    Raises:
        ValueError: a valid reward is negative, so the ratio to the mean has no meaning.
    """
    groups = _groups(rewards_PG, valid_PG)
    if bool((groups.rewards_PG < 0).any()):
        raise ValueError(
            f"algorithm.advantage=maxrl divides by the mean reward and got a reward of "
            f"{float(groups.rewards_PG.min()):g}; use rewards of 0 or more, or another advantage"
        )
    return groups.where_informative(groups.centred_PG / groups.mean_P1.clamp(min=ZERO_VARIANCE))


def pass_at_k(rewards_PG: Tensor, valid_PG: Tensor, *, pass_k: int) -> Tensor:
    """A_i = (mean best reward of the k-subsets with i - mean best reward of all k-subsets) / std of the best rewards.

    A k-subset is a set of k valid completions of the group; k is `pass_k`. std is the population standard deviation
    over all k-subsets: it divides by the number of subsets n, not by n - 1.

    Pass@k training, Chen et al. 2025 (arXiv:2508.10751), in closed form and for rewards of any value. For rewards of 0
    and 1, this is the paper's analytical advantage. If the rewards are in rising order, reward j is the best of
    C(j - 1, k - 1) subsets.

    A group with k valid rewards or fewer gets 0.
    """
    groups = _groups(rewards_PG, valid_PG)
    advantages_PG = torch.zeros_like(groups.rewards_PG)
    for row, informative in enumerate(groups.informative_P1[:, 0].tolist()):
        where_N = valid_PG[row].nonzero()[:, 0]
        if informative and len(where_N) > pass_k:
            advantages_PG[row, where_N] = _pass_at_k_of_group(groups.rewards_PG[row, where_N], pass_k)
    return advantages_PG.float()


def _pass_at_k_of_group(rewards_N: Tensor, k: int) -> Tensor:
    count = len(rewards_N)
    rising_N, order_N = rewards_N.sort()
    best_of_N = rising_N.new_tensor([math.comb(j, k - 1) for j in range(count)]) / math.comb(count, k)
    mean = (best_of_N * rising_N).sum()
    std = (best_of_N * (rising_N - mean).square()).sum().sqrt()
    if float(std) <= ZERO_VARIANCE:
        return torch.zeros_like(rewards_N)
    # In a subset that contains reward i, the best reward is either i itself or a larger reward j.
    subsets_with_i = math.comb(count - 1, k - 1)
    best_N = rising_N.new_tensor([math.comb(j, k - 1) for j in range(count)]) * rising_N
    above_N = rising_N.new_tensor([math.comb(j - 1, k - 2) if j and k > 1 else 0 for j in range(count)]) * rising_N
    later_N = above_N.sum() - above_N.cumsum(0)
    return torch.empty_like(rewards_N).scatter_(0, order_N, ((best_N + later_N) / subsets_with_i - mean) / std)


def _whitened(values_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Scale valid values to mean 0 and sample deviation 1; return 0 if there is no variance."""
    count = valid_PG.sum()
    centred_PG = torch.where(valid_PG, values_PG - values_PG.sum() / count.clamp(min=1), 0.0)
    std = (centred_PG.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return torch.where(std > ZERO_VARIANCE, centred_PG / std.clamp(min=ZERO_VARIANCE), 0.0).float()


# The functions by their names in the config.
BUILT_IN: Mapping[str, Callable[..., Tensor]] = {
    "group_std": group_normalised,
    "group_mean": group_centred,
    "leave_one_out": leave_one_out,
    "reinforce++": reinforce_plus_plus,
    "reinforce++_baseline": reinforce_plus_plus_baseline,
    "batch_std": batch_normalised,
    "maxrl": maxrl,
    "pass_at_k": pass_at_k,
}
