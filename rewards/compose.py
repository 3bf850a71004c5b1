"""Combines several named verdicts into one reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.build import VerifierSpec
from rewards.verdict import Status, Verdict


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a rollout, and its parts.

    Attributes:
        value: weighted sum of the scores; None if a verdict that would contribute has failed.
        parts: contribution of each verifier, by its name: weight times score, or 0 if a gate is closed.
        closed: names of the gates whose verdicts were not `correct`.
        failed: names of the verifiers whose status `timeout` or `error` makes the reward unknown.
    """

    value: float | None
    parts: Mapping[str, float]
    closed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def combine(specs: Sequence[VerifierSpec], verdicts: Mapping[str, Verdict]) -> Reward:
    """Combine the verdicts by the specs' weights and gates.

    If the verdict of a gate is not `correct` (the gate is closed), verifiers that are not gates contribute 0; gates
    keep their weighted scores. If the verdict of a gate fails, the reward is unknown. Another failed verdict does not
    matter if it cannot contribute, because a gate is closed or its weight is 0.

    Raises:
        ValueError: a spec has no verdict, a verdict has no spec, or a weight is not finite.
    """
    names = [spec.name for spec in specs]
    if set(names) != set(verdicts) or len(names) != len(set(names)):
        raise ValueError(f"verdicts are needed for exactly {sorted(names)}, each name once; got {sorted(verdicts)}")
    if not all(math.isfinite(spec.weight) for spec in specs):
        raise ValueError(f"weights must be finite numbers, got {[(spec.name, spec.weight) for spec in specs]}")
    failed_gates = tuple(s.name for s in specs if s.gate and verdicts[s.name].status.failed)
    closed = tuple(
        s.name
        for s in specs
        if s.gate and not verdicts[s.name].status.failed and verdicts[s.name].status is not Status.CORRECT
    )
    parts: dict[str, float] = {}
    failed = list(failed_gates)
    for spec in specs:
        verdict = verdicts[spec.name]
        if closed and not spec.gate:
            parts[spec.name] = 0.0
        elif verdict.score is not None:
            parts[spec.name] = spec.weight * verdict.score
        elif spec.weight != 0.0 and not spec.gate:
            failed.append(spec.name)
    # If a gate is closed, verifiers that are not gates contribute 0, even if another gate failed. The score of the
    # failed gate is unknown.
    value = None if failed else math.fsum(parts.values())
    return Reward(value, parts, closed, tuple(failed))


@dataclass(frozen=True, slots=True)
class StepReward:
    """The reward of a step of a completion.

    Attributes:
        stop: number of the completion's characters up to the end of the step; None for the end of the completion.
        value: weight of the verifier times the score of the step, or 0 if a gate is closed.
    """

    stop: int | None
    value: float


def step_rewards(specs: Sequence[VerifierSpec], verdicts: Mapping[str, Verdict]) -> list[StepReward]:
    """Return the rewards of a completion's steps, by the specs' weights and gates.

    Each span of a verdict is a step. A verdict without spans is a step that ends with the completion. Verifiers of
    weight 0 only measure, and have no steps.

    Raises:
        ValueError: as `combine`.
    """
    reward = combine(specs, verdicts)
    steps: list[StepReward] = []
    for spec in specs:
        spans = verdicts[spec.name].spans
        if not spec.weight or spec.name not in reward.parts:
            continue
        if not spans:
            steps.append(StepReward(None, reward.parts[spec.name]))
        closed = bool(reward.closed) and not spec.gate
        steps += [StepReward(stop, 0.0 if closed else spec.weight * score) for _, stop, score in spans]
    return steps
