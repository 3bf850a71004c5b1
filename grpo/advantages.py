"""Advantages: how much better a completion did than its group. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

# A group whose rewards differ by less than this differs by float noise: its standard deviation is not divided by.
ZERO_VARIANCE = 1e-6


def group_normalised(rewards_PG: Tensor, valid_PG: Tensor, *, scale_by_std: bool = True) -> Tensor:
    """Group-normalised advantages, with no value model.

    A_i = (r_i - mean(r)) / std(r) over the valid rewards of a group: GRPO, Shao et al. 2024 (arXiv:2402.03300),
    equation 3 with outcome supervision; std is the sample standard deviation (n - 1). With `scale_by_std=False` the
    division is left out: Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783).

    Args:
        rewards_PG: rewards, float, [prompts, completions of a group]; any value where not valid.
        valid_PG: bool, same shape; False where a verdict failed or the row is padding.
        scale_by_std: divide by the group's standard deviation.

    Returns:
        float [P, G]; 0 where not valid, in groups with fewer than two valid rewards, and in groups without variance.
    """
    if rewards_PG.shape != valid_PG.shape or rewards_PG.dim() != 2:
        raise ValueError(f"expected two [P, G] tensors, got {tuple(rewards_PG.shape)} and {tuple(valid_PG.shape)}")
    rewards_PG = torch.where(valid_PG, rewards_PG, 0.0).double()
    count_P1 = valid_PG.sum(dim=1, keepdim=True)
    mean_P1 = rewards_PG.sum(dim=1, keepdim=True) / count_P1.clamp(min=1)
    centred_PG = torch.where(valid_PG, rewards_PG - mean_P1, 0.0)
    std_P1 = (centred_PG.square().sum(dim=1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    scale_P1 = std_P1 if scale_by_std else torch.ones_like(std_P1)
    informative_P1 = (count_P1 >= 2) & (std_P1 > ZERO_VARIANCE)
    return torch.where(informative_P1, centred_PG / scale_P1.clamp(min=ZERO_VARIANCE), 0.0).float()
