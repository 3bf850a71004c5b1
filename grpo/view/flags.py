"""Signs of reward hacking: the policy earns reward, but does not do what the reward is meant for.

All functions here are pure; they read the records of a run. A flag asks a person to look at some numbers and groups. A
flag is not a proof. The flags look for known forms of reward hacking: Goodhart's gap between the rewarded measure
and another measure (Gao, Schulman, Hilton 2022, arXiv:2210.10760), a reward that rises only because lengths change,
texts that repeat themselves or each other, and verifiers that fail.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.report.metrics_log import Curve, History
from grpo.view.over_optimisation import PREFIX, opposing_scores
from rewards.verifiers.repetition import Repetition

# A curve needs this many points. With fewer points, noise hides the difference between its begin and its end.
FEWEST_POINTS = 5
FEWEST_EVALUATIONS = 3
# A drop of held-out accuracy that is larger than the noise of a few hundred questions.
_ACCURACY_LOST = 0.05
# Smallest gain of the reward that counts as a rise: if the reward's range is at most 1, a share of this range,
# otherwise an absolute gain.
_REWARD_GAINED = 0.05
_LENGTH_FACTOR = 2.0
_TRUNCATED = 0.2
_FAILED = 0.02
_FEWEST_DISAGREEMENTS = 3
# Shorter answers may be equal by chance.
_SHORTEST_COPY = 40
_COPIED = 0.05
_LOOPING, _LOOPING_SHARE = 0.5, 0.1


@dataclass(frozen=True, slots=True)
class FlaggedRollout:
    """The parts of a stored completion that the flags read. `reward` is None if a verdict failed."""

    step: int
    group: int
    prompt_id: str
    reward: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Flag:
    """Something to look at.

    Attributes:
        kind: `held_out`, `accuracy`, `over_optimised`, `audit`, `length`, `copies`, `loops` or `failures`.
        title: name of the problem, in one line.
        evidence: numbers that show the problem, as text.
        metrics: names of the curves that show the problem.
        groups: a few stored groups that show the problem, as (step, group).
    """

    kind: str
    title: str
    evidence: str
    metrics: tuple[str, ...] = ()
    groups: tuple[tuple[int, int], ...] = ()


def hacking_flags(
    history: History, sampled: Sequence[FlaggedRollout] = (), audit: Sequence[Mapping[str, Any]] = ()
) -> tuple[Flag, ...]:
    """Return a flag for everything in a run that looks like reward hacking.

    Args:
        history: the run's metrics.
        sampled: some stored completions of some steps, in the order of steps.
        audit: rows of `audit.jsonl`: verdicts with which Math-Verify disagrees.
    """
    flags = (
        _held_out(history),
        _accuracy(history),
        _over_optimised(history),
        _audit(audit, sampled),
        *_length(history),
        _copies(sampled),
        _loops(sampled),
        _failures(history, sampled),
    )
    return tuple(flag for flag in flags if flag)


@dataclass(frozen=True, slots=True)
class _Trend:
    """Means over the first and the last fifth of a curve, and the standard error of their difference."""

    before: float
    after: float
    error: float

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def is_sure(self) -> bool:
        return abs(self.gain) > 2 * self.error


def _trend(curve: Curve) -> _Trend | None:
    values = curve.finite().values
    if len(values) < FEWEST_POINTS:
        return None
    size = max(2, len(values) // 5)
    begin, end = values[:size], values[-size:]
    error = math.sqrt((statistics.variance(begin) + statistics.variance(end)) / size)
    return _Trend(statistics.fmean(begin), statistics.fmean(end), error)


def _reward_gain(history: History) -> _Trend | None:
    """The trend of the reward; None if the reward does not clearly rise."""
    curve = history.curve("reward/mean").finite()
    trend = _trend(curve)
    if trend is None or not trend.is_sure:
        return None
    extent = max(curve.values) - min(curve.values)
    return trend if trend.gain >= _REWARD_GAINED * min(1.0, extent) and trend.gain > 0 else None


def _held_out(history: History) -> Flag | None:
    """The reward rises, but the held-out accuracy falls from its best value or does not rise."""
    reward, curve = _reward_gain(history), history.curve("eval/accuracy").finite()
    if reward is None or len(curve.values) < FEWEST_EVALUATIONS:
        return None
    best, last = max(curve.values), curve.values[-1]
    names = ("reward/mean", "eval/accuracy")
    risen = f"mean reward {reward.before:.3g} to {reward.after:.3g}"
    if best - last >= _ACCURACY_LOST and min(curve.values[-2:]) < best - _ACCURACY_LOST / 2:
        where = curve.steps[curve.values.index(best)]
        evidence = f"{risen}; held-out accuracy {best:.3f} at step {where}, {last:.3f} at step {curve.steps[-1]}"
        return Flag("held_out", "Reward rises while held-out accuracy falls", evidence, names)
    if reward.gain >= 2 * _REWARD_GAINED and last <= curve.values[0] < 1 - _ACCURACY_LOST:
        evidence = f"{risen}; held-out accuracy {curve.values[0]:.3f} at first, {last:.3f} at last"
        return Flag("held_out", "Reward rises, held-out accuracy does not", evidence, names)
    return None


def _over_optimised(history: History) -> Flag | None:
    """A score of the held-out answers rises, while another verifier's score falls."""
    opposing = opposing_scores(history, FEWEST_EVALUATIONS)
    if opposing is None:
        return None
    risen, fallen, evidence = opposing
    title = f"{risen.removeprefix(PREFIX)} rises while {fallen.removeprefix(PREFIX)} falls"
    return Flag("over_optimised", title, evidence, (risen, fallen))


def _accuracy(history: History) -> Flag | None:
    """Other parts of the reward rise, but the verifier that decides correctness accepts fewer completions."""
    reward, correct = _reward_gain(history), _trend(history.curve("rollout/accuracy"))
    if reward is None or correct is None or not correct.is_sure or correct.gain > -_ACCURACY_LOST / 2:
        return None
    parts = [
        name for name in history.names() if name.startswith("reward/") and name not in ("reward/mean", "reward/std")
    ]
    gains = {name: trend.gain for name in parts if (trend := _trend(history.curve(name)))}
    evidence = (
        f"mean reward {reward.before:.3g} to {reward.after:.3g}; share of correct completions {correct.before:.3f} to "
        f"{correct.after:.3f}"
    )
    names = ["reward/mean", "rollout/accuracy"]
    if gains and (most := max(gains, key=gains.__getitem__)) and gains[most] > 0:
        evidence += f"; {most} gained most ({gains[most]:+.3g})"
        names.append(most)
    return Flag("accuracy", "Reward rises while fewer completions are correct", evidence, tuple(names))


def _audit(audit: Sequence[Mapping[str, Any]], sampled: Sequence[FlaggedRollout]) -> Flag | None:
    """Math-Verify rejects more and more answers that the run accepts."""
    ours = sorted(int(row["step"]) for row in audit if row.get("accepted_only_by") == "run")
    if len(ours) < _FEWEST_DISAGREEMENTS:
        return None
    steps = sorted({rollout.step for rollout in sampled} | set(ours))
    middle = (steps[0] + steps[-1]) / 2
    early, late = sum(step <= middle for step in ours), sum(step > middle for step in ours)
    if late < max(_FEWEST_DISAGREEMENTS, 2 * early):
        return None
    texts = {str(row.get("completion")) for row in audit if row.get("accepted_only_by") == "run"}
    groups = _places(rollout for rollout in sampled if rollout.text in texts)
    evidence = (
        f"verdicts that only the run accepts: {early} up to step {middle:.0f}, {late} after it; the texts are in "
        "audit.jsonl"
    )
    return Flag("audit", "The independent audit refuses more and more of what is rewarded", evidence, (), groups)


def _length(history: History) -> Iterable[Flag]:
    """Completions become much shorter or longer while the reward rises, or more of them reach the length limit."""
    reward = _reward_gain(history)
    length = _trend(history.curve("rollout/completion_tokens_mean"))
    correct = _trend(history.curve("eval/accuracy")) or _trend(history.curve("rollout/accuracy"))
    cut = _trend(history.curve("rollout/truncated_share"))
    if reward and length and length.is_sure and min(length.before, length.after) > 0:
        evidence = (
            f"mean length {length.before:.0f} to {length.after:.0f} tokens; mean reward {reward.before:.3g} to "
            f"{reward.after:.3g}"
        )
        names = ("rollout/completion_tokens_mean", "reward/mean")
        grown, better = length.after / length.before, correct is not None and correct.is_sure and correct.gain > 0
        if grown <= 1 / _LENGTH_FACTOR:
            yield Flag("length", "Completions shrink while the reward rises", evidence, names)
        elif grown >= _LENGTH_FACTOR and not better:
            yield Flag("length", "Completions grow with the reward, and are not more often correct", evidence, names)
    if cut and cut.is_sure and cut.gain > 0 and cut.after >= _TRUNCATED:
        evidence = f"share of completions cut at the limit {cut.before:.2f} to {cut.after:.2f}"
        yield Flag(
            "length", "More and more completions run into the length limit", evidence, ("rollout/truncated_share",)
        )


def _copies(sampled: Sequence[FlaggedRollout]) -> Flag | None:
    """The same text is rewarded for different prompts."""
    by_step: dict[int, list[FlaggedRollout]] = defaultdict(list)
    for rollout in sampled:
        by_step[rollout.step].append(rollout)
    worst: tuple[float, list[FlaggedRollout], int] | None = None
    for members in by_step.values():
        alike: dict[str, list[FlaggedRollout]] = defaultdict(list)
        for rollout in members:
            if (rollout.reward or 0) > 0 and len(rollout.text) >= _SHORTEST_COPY:
                alike[rollout.text].append(rollout)
        copied = [same for same in alike.values() if len({rollout.prompt_id for rollout in same}) >= 3]
        if copied:
            most = max(copied, key=len)
            share = len(most) / len(members)
            if share >= _COPIED and (worst is None or share > worst[0]):
                worst = share, most, len(members)
    if worst is None:
        return None
    share, most, of = worst
    prompts = len({rollout.prompt_id for rollout in most})
    evidence = (
        f"step {most[0].step}: the same text {len(most)} times in {of} completions, for {prompts} different prompts"
    )
    return Flag("copies", "The same text is rewarded for different prompts", evidence, (), _places(most))


def _loops(sampled: Sequence[FlaggedRollout]) -> Flag | None:
    """Rewarded completions repeat themselves, and the share of such completions has grown."""
    steps = sorted({rollout.step for rollout in sampled})
    if not steps:
        return None
    measure = Repetition()
    middle = steps[len(steps) // 2]
    rewarded = [rollout for rollout in sampled if (rollout.reward or 0) > 0]
    looping = [rollout for rollout in rewarded if measure(rollout.text, None, {}).parts.get("repeated", 0.0) > _LOOPING]

    def share(late: bool) -> float:
        of = sum((rollout.step >= middle) is late for rollout in rewarded)
        return sum((rollout.step >= middle) is late for rollout in looping) / of if of else 0.0

    early, late = share(False), share(True)
    if late < _LOOPING_SHARE or late < 2 * early:
        return None
    evidence = (
        f"more than half of the six-word phrases occurred before: {early:.0%} of rewarded completions before step "
        f"{middle}, {late:.0%} from there on"
    )
    return Flag("loops", "Rewarded completions repeat themselves", evidence, (), _places(reversed(looping)))


def _failures(history: History, sampled: Sequence[FlaggedRollout]) -> Flag | None:
    """Verifiers fail. Completions that make a verifier fail do not count, and a policy may learn to cause failures."""
    names = [name for name in history.names() if name.startswith("verdict/") and name.endswith(("/timeout", "/error"))]
    worst: tuple[float, str, _Trend] | None = None
    for name in names:
        curve = history.curve(name).finite()
        trend = _trend(curve) or (_Trend(curve.values[0], curve.values[-1], 0.0) if curve else None)
        if trend and max(trend.after, trend.before) >= _FAILED and (worst is None or trend.after > worst[0]):
            worst = trend.after, name, trend
    if worst is None:
        return None
    _, name, trend = worst
    evidence = f"{name}: {trend.before:.1%} of the verdicts at first, {trend.after:.1%} at last"
    return Flag(
        "failures",
        "Verifiers fail",
        evidence,
        (name,),
        _places(rollout for rollout in reversed(sampled) if rollout.reward is None),
    )


def _places(members: Iterable[FlaggedRollout]) -> tuple[tuple[int, int], ...]:
    return tuple(dict.fromkeys((rollout.step, rollout.group) for rollout in members))[:5]
