"""Several rewards, each normalised apart over its group before they are summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.algorithm.advantages import group_normalised
from grpo.types import Group
from rewards.build import VerifierSpec
from rewards.compose import combine
from rewards.selection import choose


def rewards_apart(specs: Sequence[VerifierSpec], groups: Sequence[Group], valid_PG: Tensor) -> Tensor:
    """Sum the parts of each reward, after each part is normalised over its group: float32 [P, G].

    R_i = sum over the verifiers k of |w_k| (p_ik - mean(p_k)) / std(p_k), where p_ik is the part w_k s_ik of the reward
    after the gates. GDPO, Liu et al. 2026 (arXiv:2601.05242), equations 4 and 5. Without it, the reward with the
    largest deviation decides almost alone, and different combinations of rewards get the same advantage. A part that is
    equal in the whole group adds 0, and the reward of an element that is not valid is 0.

    Args:
        specs: verifiers of the run, with their weights.
        groups: groups of a step.
        valid_PG: mask of the known rewards.
    """
    total_PG = torch.zeros(valid_PG.shape)
    for spec in specs:
        if not spec.weight:
            continue
        parts_PG, has_PG = torch.zeros(valid_PG.shape), torch.zeros_like(valid_PG)
        for row, group in enumerate(groups):
            chosen = choose(specs, group.prompt.row)
            if spec not in chosen:
                continue
            for column, rollout in enumerate(group.rollouts):
                if valid_PG[row, column]:
                    parts_PG[row, column] = combine(chosen, rollout.verdicts).parts[spec.name]
                    has_PG[row, column] = True
        total_PG += abs(spec.weight) * group_normalised(parts_PG, has_PG)
    return total_PG
