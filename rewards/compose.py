"""Several named verdicts into one reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.build import VerifierSpec
from rewards.verdict import Status, Verdict


@dataclass(frozen=True, slots=True)
class Reward:
    """What a rollout earned, and from what.

    Attributes:
        value: the weighted sum; None where a contributing verdict failed, so that nothing is known.
        parts: what each verifier contributed under its own name: weight times score, 0 behind a closed gate.
        closed: names of the gates that were not `correct`.
        failed: names of the verdicts of status `timeout` or `error` that kept the reward from being known.
    """

    value: float | None
    parts: Mapping[str, float]
    closed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def combine(specs: Sequence[VerifierSpec], verdicts: Mapping[str, Verdict]) -> Reward:
    """Combine the verdicts by the specs' weights and gates.

    A gate that is not `correct` zeroes every verifier that is not a gate; gates keep their own weighted scores. A
    failed gate makes the reward unknown. A failed verdict behind a closed gate does not contribute and so does not
    matter; neither does one of weight 0.

    Raises:
        ValueError: a spec without a verdict, a verdict without a spec, or a weight that is not finite.
    """
    names = [spec.name for spec in specs]
    if set(names) != set(verdicts) or len(names) != len(set(names)):
        raise ValueError(f"verdicts are needed for exactly {sorted(names)}, each name once; got {sorted(verdicts)}")
    if not all(math.isfinite(spec.weight) for spec in specs):
        raise ValueError(f"weights must be finite numbers: {[(spec.name, spec.weight) for spec in specs]}")
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
    # A closed gate settles the others even where another gate failed, but not that gate's own share.
    value = None if failed else math.fsum(parts.values())
    return Reward(value, parts, closed, tuple(failed))
