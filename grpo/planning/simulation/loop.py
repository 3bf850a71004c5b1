"""A discrete-event model of the training loop. It predicts the durations of steps if sampling and learning overlap.

The model is pure arithmetic on lengths and speeds. docs/simulator.md describes the model and its limits. The model
requests and takes groups by the same rules as the training loop:

- While the policy is at version v, (v + 1 + k) * P groups have been submitted; k is `rollout.max_policy_lag`.
- The birth of an unfinished group is the version at the group's submission. The birth of a finished group is the
  version that sampled its first token. This version is later than the submission's if the group waited for a slot. A
  group is due at step birth + k.
- If D groups are due by step n + m, step n waits for D - m * P of these groups. This rule holds for every m. For the
  rest of its groups, the step takes the groups that finished first.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

from grpo.planning.simulation.generators import Deployment as Deployment
from grpo.planning.simulation.generators import Integers as Integers
from grpo.planning.simulation.generators import RolloutSchedule, SimulatedGenerators
from grpo.planning.simulation.generators import Speeds as Speeds


@dataclass(frozen=True, slots=True)
class Step:
    """Training step n. Times are in seconds after version 0 arrived at the generators.

    Attributes:
        began_s: time at which version n arrived at the generators.
        ready_s: time at which the last needed group was finished.
        learned_s: time at which the optimizer had made version n + 1.
        ended_s: time at which version n + 1 arrived at the generators. The next step begins at this time.
        groups: numbers of the groups that the step trains on, sorted. Groups are numbered from 0 in the order of
            submission.
        births: versions that sampled the first tokens of these groups.
        tokens: number of tokens that the step trains on. Each group's prompt counts once.
        sampled_tokens: number of completion tokens that all replicas sampled from `began_s` to `ended_s`.
        busy_s: seconds in which a replica had work from `began_s` to `ended_s`, summed over replicas.
        slot_s: seconds in which a sequence ran from `began_s` to `ended_s`, summed over sequences.
    """

    began_s: float
    ready_s: float
    learned_s: float
    ended_s: float
    groups: tuple[int, ...]
    births: tuple[int, ...]
    tokens: int
    sampled_tokens: float
    busy_s: float
    slot_s: float


def groups_needed(schedule: RolloutSchedule, steps: int) -> int:
    """Return the number of groups that `simulate` submits in `steps` steps."""
    return (steps + schedule.max_policy_lag) * schedule.prompts_per_step


def simulate(
    schedule: RolloutSchedule, deployment: Deployment, speeds: Speeds, lengths_NG: Integers, steps: int
) -> tuple[Step, ...]:
    """Simulate the first steps of a run.

    Args:
        schedule: schedule of the rollouts.
        deployment: hardware of the run.
        speeds: durations of the work.
        lengths_NG: number of tokens of each completion, [groups in the order of their submission, completions of a
            group]; at least `groups_needed` rows. To compare lags, use the same lengths for all lags.
        steps: number of steps.

    Raises:
        ValueError: there are too few lengths, or a length is below 1.
    """
    needed = groups_needed(schedule, steps)
    if steps < 1 or len(lengths_NG) < needed:
        raise ValueError(f"{steps} steps of {schedule} need lengths of {needed} groups, got {len(lengths_NG)}")
    if lengths_NG.min() < 1:
        raise ValueError(f"a completion has {lengths_NG.min()} tokens; each has at least the token that ends it")
    generators = SimulatedGenerators(schedule, deployment, speeds, lengths_NG)
    wanted, lag = schedule.prompts_per_step, schedule.max_policy_lag
    waiting = np.empty(0, dtype=np.int64)
    submitted, now_s, done = 0, 0.0, []
    for version in range(steps):
        new = np.arange(submitted, (version + 1 + lag) * wanted)
        submitted += len(new)
        generators.submit(new, version, now_s)
        waiting = np.concatenate([waiting, new])

        ready_s, chosen, births = _choose(waiting, generators, schedule, version, now_s)
        waiting = np.setdiff1d(waiting, chosen, assume_unique=True)
        assert births.min() >= version - lag, "every group was taken at or before its due step"
        tokens = int(lengths_NG[chosen].sum()) + wanted * schedule.prompt_tokens
        learned_s = ready_s + speeds.learn_base_s + speeds.learn_token_s * tokens / deployment.learner_gpus
        ended_s = learned_s + speeds.push_s
        worked = generators.advance(now_s, learned_s, ended_s, version + 1)
        step = Step(now_s, ready_s, learned_s, ended_s, tuple(chosen.tolist()), tuple(births.tolist()), tokens, *worked)
        done.append(step)
        now_s = ended_s
    return tuple(done)


def _choose(
    waiting: Integers, generators: SimulatedGenerators, schedule: RolloutSchedule, version: int, now_s: float
) -> tuple[float, Integers, Integers]:
    """Return the time at which a step has its groups, the sorted groups, and the births of these groups."""
    wanted, lag = schedule.prompts_per_step, schedule.max_policy_lag
    finished_s = generators.finished_s[waiting]
    first_token = np.where(generators.started[waiting] < 0, version, generators.started[waiting])
    order = np.lexsort((waiting, finished_s))

    def choice(time_s: float) -> tuple[Integers, Integers] | None:
        there = finished_s <= time_s
        births = np.where(there, first_token, generators.births[waiting])
        chosen = np.zeros(len(waiting), dtype=np.bool_)
        for later in range(lag + 1):
            due = births + lag <= version + later
            must = int(due.sum()) - later * wanted - int(chosen.sum())
            candidates = order[(there & due & ~chosen)[order]]
            if len(candidates) < must:
                return None
            chosen[candidates[: max(0, must)]] = True
        assert chosen.sum() == wanted, "all of the (1 + k) * P open groups are due by step n + k"
        return waiting[chosen], births[chosen]

    # If a choice is possible at some time, it is possible at every later time.
    times_s = np.maximum(np.sort(finished_s)[wanted - 1 :], now_s)
    first = bisect.bisect_left(range(len(times_s)), True, key=lambda at: choice(times_s[at]) is not None)
    chosen_groups = choice(times_s[first])
    assert chosen_groups is not None
    return float(times_s[first]), *chosen_groups
