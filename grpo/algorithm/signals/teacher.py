"""On-policy distillation: a teacher's score of each token that the policy sampled."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from grpo.algorithm.minibatches import ProximalLogprobs, TokenAdvantages
from grpo.config.signals.teacher import TeacherConfig
from grpo.types import Group


def teacher_advantages(
    teacher: TeacherConfig,
    groups: Sequence[Group],
    scores: ProximalLogprobs,
    advantages_PG: Tensor,
    by_token: TokenAdvantages | None,
) -> TokenAdvantages:
    """Return A_t + weight x (log p_teacher - log p_policy) at each sampled token; A_t = 0 if the teacher is alone.

    The mean of log p_policy - log p_teacher over tokens that the policy sampled is the reverse KL divergence to the
    teacher. So a policy gradient with this advantage descends the divergence of each token, given the tokens before it.

    On-policy distillation: Agarwal et al. 2024 (GKD, arXiv:2306.13649); Gu et al. 2024 (MiniLLM, arXiv:2306.08543).

    Args:
        teacher: the teacher's weight, and whether it is alone.
        groups: sampled groups.
        scores: for each group and rollout, the teacher's log-probabilities of the sampled tokens; None for a rollout
            without a known reward.
        advantages_PG: advantages of the rollouts.
        by_token: advantages of tokens that replace the rollout's advantage, or None.

    Returns:
        For each group and rollout, the advantage of each sampled token; None where `scores` is None.
    """
    advantages = advantages_PG.tolist()
    rows: list[list[tuple[float, ...] | None]] = []
    for row, (group, scores_G) in enumerate(zip(groups, scores, strict=True)):
        of_group: list[tuple[float, ...] | None] = []
        for column, (rollout, scored) in enumerate(zip(group.rollouts, scores_G, strict=True)):
            sampled = rollout.completion.sampled_logprobs
            replaced = by_token[row][column] if by_token is not None else None
            before = replaced if replaced is not None else (advantages[row][column],) * len(sampled)
            of_group.append(
                None
                if scored is None
                else tuple(
                    (0.0 if teacher.alone else base) + teacher.weight * (theirs - ours)
                    for base, theirs, ours in zip(before, scored, sampled, strict=True)
                )
            )
        rows.append(of_group)
    return rows


def reverse_kl(groups: Sequence[Group], scores: ProximalLogprobs) -> float | None:
    """Return the mean of log p_policy - log p_teacher over the scored tokens, in nats; None if none is scored."""
    differences = [
        ours - theirs
        for group, scores_G in zip(groups, scores, strict=True)
        for rollout, scored in zip(group.rollouts, scores_G, strict=True)
        if scored is not None
        for ours, theirs in zip(rollout.completion.sampled_logprobs, scored, strict=True)
    ]
    return sum(differences) / len(differences) if differences else None
