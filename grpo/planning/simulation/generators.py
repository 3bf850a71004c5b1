"""The generators of a simulated run, and the inputs of a simulation: speeds, deployment, schedule.

Nothing is submitted between two weight pushes. So each push determines a replica's work until the next push, and the
simulation computes this work for all sequences at once. In an engine step, a replica decodes a token of every running
sequence. So on a clock of engine steps, a sequence ends `length` steps after its start, whatever the speed. The
duration of an engine step follows from the number of sequences that run in it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Speeds:
    """The durations of the simulated work.

    Attributes:
        decode_base_s: fixed seconds of an engine step, for any number of sequences.
        decode_sequence_s: seconds that each running sequence adds to an engine step.
        prefill_token_s: seconds for a token of a new prompt, and for a token whose key-value cache is recomputed after
            a weight push. The replica decodes nothing during prefill.
        learn_base_s: fixed seconds of a training step, for any number of tokens.
        learn_token_s: GPU-seconds that each token adds to a training step. The learner's GPUs share them evenly.
        push_s: seconds of a weight push. During a push, no replica samples and the learner waits.
    """

    decode_base_s: float
    decode_sequence_s: float = 0.0
    prefill_token_s: float = 0.0
    learn_base_s: float = 0.0
    learn_token_s: float = 0.0
    push_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            seconds = getattr(self, name)
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{name} is {seconds}; a duration is a number of seconds, 0 or more")
        if self.decode_base_s + self.decode_sequence_s == 0:
            raise ValueError("decode_base_s and decode_sequence_s are both 0; a token takes some time to decode")


@dataclass(frozen=True, slots=True)
class Deployment:
    """The hardware of a simulated run.

    Attributes:
        replicas: number of generators.
        max_sequences: number of sequences that a replica samples at a time (`generator.max_sequences`).
        learner_gpus: number of GPUs that share a training step.
    """

    replicas: int
    max_sequences: int
    learner_gpus: int = 1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")


@dataclass(frozen=True, slots=True)
class RolloutSchedule:
    """The schedule of the rollouts. Its names are those of the config's section `rollout`.

    Attributes:
        prompts_per_step: number P of groups in a training step.
        max_policy_lag: largest number k of versions between the policy that sampled a token and the newest policy.
        partial: effect of a weight push on groups in flight. `continue` keeps their tokens and samples the rest with
            the new weights; `restart` drops their tokens. Neither changes the step at which the groups are due.
        prompt_tokens: length of a prompt, in tokens.
    """

    prompts_per_step: int
    max_policy_lag: int = 0
    partial: Literal["continue", "restart"] = "continue"
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1:
            raise ValueError(f"prompts_per_step is {self.prompts_per_step}; at least 1 is needed")
        if self.max_policy_lag < 0:
            raise ValueError(f"max_policy_lag is {self.max_policy_lag}; it must be 0 or more (0 is on-policy)")
        if self.prompt_tokens < 0:
            raise ValueError(f"prompt_tokens is {self.prompt_tokens}; a length is 0 or more")


class SimulatedGenerators:
    """All replicas. The simulation advances them from each weight push to the next.

    The unfinished sequences are rows of parallel arrays. Their order is the order in which a replica gives them a slot.
    """

    def __init__(self, schedule: RolloutSchedule, deployment: Deployment, speeds: Speeds, lengths_NG: Integers) -> None:
        self._schedule, self._deployment, self._speeds, self._lengths_NG = schedule, deployment, speeds, lengths_NG
        groups = len(lengths_NG)
        self.births = np.zeros(groups, dtype=np.int64)
        # The version that sampled a group's first token; -1 if no token was sampled before the last push.
        self.started = np.full(groups, -1)
        self.finished_s = np.full(groups, np.inf)
        self._replica_of = np.zeros(groups, dtype=np.int64)
        self._group: Integers = np.empty(0, dtype=np.int64)
        self._length: Floats = np.empty(0)
        self._remaining: Floats = np.empty(0)
        self._runs: Flags = np.empty(0, dtype=np.bool_)
        # The time at which each replica has finished its prefill and decodes again.
        self._resumes_s = np.zeros(deployment.replicas)

    def submit(self, groups: Integers, version: int, now_s: float) -> None:
        """Give each group to the replica with the fewest unfinished groups, and compute when all groups will finish."""
        self.births[groups] = version
        loads = self._per_replica(np.unique(self._group))
        heap = [(int(load), replica) for replica, load in enumerate(loads)]
        heapq.heapify(heap)
        for group in groups.tolist():
            load, replica = heap[0]
            self._replica_of[group] = replica
            heapq.heapreplace(heap, (load + 1, replica))
        self._append(groups)
        # A group's prompt is computed once, for all its completions.
        prompts = self._per_replica(groups) * self._schedule.prompt_tokens
        self._resumes_s = np.maximum(self._resumes_s, now_s) + prompts * self._speeds.prefill_token_s
        self._foresee()

    def advance(self, began_s: float, held_s: float, ended_s: float, version: int) -> tuple[float, float, float]:
        """Simulate from `began_s` until a push stops the replicas at `held_s`.

        They resume at `ended_s` with the weights of `version`.

        Returns:
            Tokens sampled, seconds in which a replica had something to do, and seconds in which a sequence ran.
        """
        of, over, speeds = self._replica_of[self._group], self._ends_s <= held_s, self._speeds
        # The engine step that each replica has reached: the step at which a sequence last ended, plus the steps since
        # then at the present speed.
        last_s, reached = self._resumes_s.copy(), np.zeros(self._deployment.replicas)
        np.maximum.at(last_s, of[over], self._ends_s[over])
        np.maximum.at(reached, of[over], self._ends[over])
        count = self._count - np.bincount(of[over], minlength=len(self._count))
        running = np.minimum(self._deployment.max_sequences, count)
        since_s = np.where(count > 0, np.maximum(0.0, held_s - last_s), 0.0)
        reached += since_s / (speeds.decode_base_s + speeds.decode_sequence_s * np.maximum(running, 1))

        runs = ~over & (self._starts <= reached[of])
        remaining = np.where(runs, np.minimum(self._remaining, self._ends - reached[of]), self._remaining)
        remaining[over] = 0.0
        sampled = float((self._remaining - remaining).sum())
        until_s = np.where(count > 0, held_s, np.where(self._count > 0, last_s, began_s))
        slot_s = float(self._slot_s[over].sum() + (since_s * running).sum())

        again = self._prefill_s(runs, remaining)
        unfinished = np.unique(self._group[~over])
        begun = np.unique(self._group[self._length - remaining >= 1])
        self.started[begun[self.started[begun] < 0]] = version - 1
        self._keep(~over, remaining, runs)
        if self._schedule.partial == "restart":
            self._keep(np.zeros(len(self._group), dtype=np.bool_), self._remaining, self._runs)
            self.started[unfinished] = -1
            self._append(unfinished)
        self._resumes_s = ended_s + np.maximum(0.0, self._resumes_s - held_s) + again
        return sampled, float((until_s - began_s).sum()), slot_s

    def _prefill_s(self, runs: Flags, remaining: Floats) -> Floats:
        """Return the seconds in which each replica recomputes the key-value cache of running sequences after a push."""
        tokens: Floats = self._per_replica(np.unique(self._group[runs])) * np.float64(self._schedule.prompt_tokens)
        if self._schedule.partial == "continue":
            sampled = np.where(runs, self._length - remaining, 0.0)
            tokens += np.bincount(self._replica_of[self._group], weights=sampled, minlength=len(tokens))
        return tokens * self._speeds.prefill_token_s

    def _foresee(self) -> None:
        """Compute when every sequence gets a slot and ends, if no more groups are submitted."""
        slots, speeds = self._deployment.max_sequences, self._speeds
        of = self._replica_of[self._group]
        self._count = np.bincount(of, minlength=self._deployment.replicas)
        self._starts, self._ends = _engine_steps(of, self._remaining, self._runs, self._count, slots)
        order = np.lexsort((self._ends, of))
        replica, end = of[order], self._ends[order]
        first = np.cumsum(self._count) - self._count
        rank = np.arange(len(order)) - first[replica]
        between = np.where(rank == 0, end, np.diff(end, prepend=0.0))
        # As long as any sequence waits for a slot, all slots are taken.
        running = np.minimum(slots, self._count[replica] - rank)
        seconds = between * (speeds.decode_base_s + speeds.decode_sequence_s * running)
        elapsed = np.cumsum(seconds)
        before = np.concatenate([[0.0], elapsed])[first]
        self._ends_s, self._slot_s = np.empty(len(order)), np.empty(len(order))
        self._ends_s[order] = elapsed - before[replica] + self._resumes_s[replica]
        self._slot_s[order] = seconds * running
        self.finished_s[self._group] = 0.0
        np.maximum.at(self.finished_s, self._group, self._ends_s)

    def _append(self, groups: Integers) -> None:
        lengths = self._lengths_NG[groups].astype(np.float64)
        self._group = np.concatenate([self._group, np.repeat(groups, lengths.shape[1])])
        self._length = np.concatenate([self._length, lengths.ravel()])
        self._remaining = np.concatenate([self._remaining, lengths.ravel()])
        self._runs = np.concatenate([self._runs, np.zeros(lengths.size, dtype=np.bool_)])

    def _keep(self, kept: Flags, remaining: Floats, runs: Flags) -> None:
        self._group, self._length = self._group[kept], self._length[kept]
        self._remaining, self._runs = remaining[kept], runs[kept]

    def _per_replica(self, groups: Integers) -> Integers:
        return np.bincount(self._replica_of[groups], minlength=self._deployment.replicas)


def _engine_steps(
    replica_of: Integers, remaining: Floats, runs: Flags, count: Integers, slots: int
) -> tuple[Floats, Floats]:
    """Return, for each sequence, the engine step at which it gets a slot and the engine step at which it ends.

    Running sequences keep their slots. Waiting sequences get free slots in their order.
    """
    starts, ends = np.zeros(len(remaining)), remaining.copy()
    crowded = np.flatnonzero(count > slots)
    if not len(crowded):
        return starts, ends
    order = np.lexsort((~runs, replica_of))
    stops = np.cumsum(count)
    for replica in crowded:
        mine = order[stops[replica] - count[replica] : stops[replica]]
        heap = remaining[mine[:slots]].tolist()
        heapq.heapify(heap)
        began, ended = [], []
        for steps in remaining[mine[slots:]].tolist():
            began.append(heap[0])
            ended.append(heap[0] + steps)
            heapq.heapreplace(heap, ended[-1])
        starts[mine[slots:]], ends[mine[slots:]] = began, ended
    return starts, ends
