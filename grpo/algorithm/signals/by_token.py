"""The advantages of single tokens in a step, where the objective has such advantages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from grpo.algorithm.minibatches import TokenAdvantages
from grpo.algorithm.rescoring import Scorer, rescore
from grpo.algorithm.signals.process import TokenEnds, process_advantages
from grpo.algorithm.signals.teacher import reverse_kl, teacher_advantages
from grpo.algorithm.turn_advantages import turn_advantages
from grpo.config import TrainConfig
from grpo.types import Group
from rewards.build import VerifierSpec


def token_advantages(
    settings: TrainConfig,
    learner: Scorer,
    groups: Sequence[Group],
    advantages_PG: Tensor,
    rewards_PG: Tensor,
    valid_PG: Tensor,
    specs: Sequence[VerifierSpec],
    ends: TokenEnds,
) -> tuple[TokenAdvantages | None, dict[str, float]]:
    """Return the advantages of sampled tokens, and their metrics; None if each rollout has a single advantage.

    Args:
        settings: settings of the run: `algorithm.turn_rewards`, `algorithm.supervision`, `algorithm.teacher`.
        learner: computes the teacher's scores.
        groups: sampled groups.
        advantages_PG: advantages of the rollouts.
        rewards_PG: rewards of the rollouts.
        valid_PG: bool, True if the reward is known.
        specs: the run's verifiers.
        ends: finds the token in which a step ends.
    """
    algorithm, metrics = settings.algorithm, {}
    by_token = turn_advantages(algorithm, groups, rewards_PG, valid_PG)
    if algorithm.supervision == "process":
        by_token = process_advantages(algorithm, groups, valid_PG, specs, ends)
        metrics = step_metrics(groups)
    if algorithm.teacher is not None:
        scores = rescore(settings, learner, groups, valid_PG, "teacher")
        by_token = teacher_advantages(algorithm.teacher, groups, scores, advantages_PG, by_token)
        divergence = reverse_kl(groups, scores)
        metrics |= {} if divergence is None else {"teacher/reverse_kl": divergence}
    return by_token, metrics


def step_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of steps: scored spans per completion, and the mean score of a span, of all verifiers."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scores = [score for rollout in rollouts for verdict in rollout.verdicts.values() for _, _, score in verdict.spans]
    metrics = {"process/steps_mean": len(scores) / len(rollouts)}
    return metrics | ({"process/step_score_mean": sum(scores) / len(scores)} if scores else {})
