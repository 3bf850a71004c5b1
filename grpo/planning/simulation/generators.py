"""The generators of a simulated run, and what a run is simulated of: speeds, deployment, schedule.

Nothing is submitted between two weight pushes. So a replica's future is known at each push, and it is worked out for
all its sequences at once: a replica decodes one token of every running sequence per engine step, so that on a clock
that counts engine steps each sequence ends its length after its start, whatever the speed; how long the engine steps
took follows from how many sequences ran in each.
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
    """What takes how long.

    Attributes:
        decode_base_s: seconds of an engine step, however few sequences run in it.
        decode_sequence_s: seconds that each running sequence adds to it.
        prefill_token_s: seconds for one token of a new prompt, and for one token whose key-value cache is recomputed
            after a weight push; a replica decodes nothing meanwhile.
        learn_base_s: seconds of a training step, however few tokens it has.
        learn_token_s: GPU-seconds that each token adds to it; the learner's GPUs share them evenly.
        push_s: seconds of a weight push, in which nobody samples or learns.
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
    """What the work runs on.

    Attributes:
        replicas: generators.
        max_sequences: that one of them samples at a time (`generator.max_sequences`).
        learner_gpus: over which a training step is spread.
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
    """What is asked for, by the names of the config's section `rollout`.

    Attributes:
        prompts_per_step: P, groups in a training step.
        max_policy_lag: k, by how many versions the newest policy may be ahead of one that sampled a token.
        partial: what a weight push does to groups in flight: `continue` goes on under the new weights, `restart` drops
            their tokens; either way they stay due when they were.
        prompt_tokens: length of a prompt.
    """

    prompts_per_step: int
    max_policy_lag: int = 0
    partial: Literal["continue", "restart"] = "continue"
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1:
            raise ValueError(f"prompts_per_step is {self.prompts_per_step}; at least 1 is needed")
        if self.max_policy_lag < 0:
            raise ValueError(f"max_policy_lag is {self.max_policy_lag}; 0 is on-policy, and the least")
        if self.prompt_tokens < 0:
            raise ValueError(f"prompt_tokens is {self.prompt_tokens}; a length is 0 or more")


class SimulatedGenerators:
    """All replicas, taken from one weight push to the next.

    Sequences that are not finished are rows of parallel arrays, in the order in which their replica gives them a slot.
    """

    def __init__(self, schedule: RolloutSchedule, deployment: Deployment, speeds: Speeds, lengths_NG: Integers) -> None:
        self._schedule, self._deployment, self._speeds, self._lengths_NG = schedule, deployment, speeds, lengths_NG
        groups = len(lengths_NG)
        self.births = np.zeros(groups, dtype=np.int64)
        # The version that sampled a group's first token; -1 for none, as far as the last push knows.
        self.started = np.full(groups, -1)
        self.finished_s = np.full(groups, np.inf)
        self._replica_of = np.zeros(groups, dtype=np.int64)
        self._group: Integers = np.empty(0, dtype=np.int64)
        self._length: Floats = np.empty(0)
        self._left: Floats = np.empty(0)
        self._runs: Flags = np.empty(0, dtype=np.bool_)
        # When each replica decodes again, after what it has to prefill.
        self._resumes_s = np.zeros(deployment.replicas)

    def submit(self, groups: Integers, version: int, now_s: float) -> None:
        """Deal groups out, each to the replica with the fewest unfinished ones, and foresee when all will be done."""
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
        """Work from `began_s` until a push holds the replicas at `held_s`; they go on at `ended_s`, as `version`.

        Returns:
            Tokens sampled, seconds in which a replica had something to do, and seconds in which a sequence ran.
        """
        of, over, speeds = self._replica_of[self._group], self._ends_s <= held_s, self._speeds
        # Where each replica's engine has got to: the last end of a sequence, and from there at the present speed.
        last_s, reached = self._resumes_s.copy(), np.zeros(self._deployment.replicas)
        np.maximum.at(last_s, of[over], self._ends_s[over])
        np.maximum.at(reached, of[over], self._ends[over])
        count = self._count - np.bincount(of[over], minlength=len(self._count))
        running = np.minimum(self._deployment.max_sequences, count)
        since_s = np.where(count > 0, np.maximum(0.0, held_s - last_s), 0.0)
        reached += since_s / (speeds.decode_base_s + speeds.decode_sequence_s * np.maximum(running, 1))

        runs = ~over & (self._starts <= reached[of])
        left = np.where(runs, np.minimum(self._left, self._ends - reached[of]), self._left)
        left[over] = 0.0
        sampled = float((self._left - left).sum())
        until_s = np.where(count > 0, held_s, np.where(self._count > 0, last_s, began_s))
        slot_s = float(self._slot_s[over].sum() + (since_s * running).sum())

        again = self._prefill_s(runs, left)
        unfinished = np.unique(self._group[~over])
        begun = np.unique(self._group[self._length - left >= 1])
        self.started[begun[self.started[begun] < 0]] = version - 1
        self._keep(~over, left, runs)
        if self._schedule.partial == "restart":
            self._keep(np.zeros(len(self._group), dtype=np.bool_), self._left, self._runs)
            self.started[unfinished] = -1
            self._append(unfinished)
        self._resumes_s = ended_s + np.maximum(0.0, self._resumes_s - held_s) + again
        return sampled, float((until_s - began_s).sum()), slot_s

    def _prefill_s(self, runs: Flags, left: Floats) -> Floats:
        """Seconds in which each replica computes the key-value cache of what runs again, under new weights."""
        tokens: Floats = self._per_replica(np.unique(self._group[runs])) * np.float64(self._schedule.prompt_tokens)
        if self._schedule.partial == "continue":
            sampled = np.where(runs, self._length - left, 0.0)
            tokens += np.bincount(self._replica_of[self._group], weights=sampled, minlength=len(tokens))
        return tokens * self._speeds.prefill_token_s

    def _foresee(self) -> None:
        """Work out when every sequence gets a slot and ends if nothing more is submitted."""
        slots, speeds = self._deployment.max_sequences, self._speeds
        of = self._replica_of[self._group]
        self._count = np.bincount(of, minlength=self._deployment.replicas)
        self._starts, self._ends = _engine_steps(of, self._left, self._runs, self._count, slots)
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
        self._left = np.concatenate([self._left, lengths.ravel()])
        self._runs = np.concatenate([self._runs, np.zeros(lengths.size, dtype=np.bool_)])

    def _keep(self, kept: Flags, left: Floats, runs: Flags) -> None:
        self._group, self._length = self._group[kept], self._length[kept]
        self._left, self._runs = left[kept], runs[kept]

    def _per_replica(self, groups: Integers) -> Integers:
        return np.bincount(self._replica_of[groups], minlength=self._deployment.replicas)


def _engine_steps(of: Integers, left: Floats, runs: Flags, count: Integers, slots: int) -> tuple[Floats, Floats]:
    """After how many of its replica's engine steps each sequence gets a slot, and ends.

    Sequences that run keep their slots; the others get one each in their order as slots fall free.
    """
    starts, ends = np.zeros(len(left)), left.copy()
    crowded = np.flatnonzero(count > slots)
    if not len(crowded):
        return starts, ends
    order = np.lexsort((~runs, of))
    stops = np.cumsum(count)
    for replica in crowded:
        mine = order[stops[replica] - count[replica] : stops[replica]]
        heap = left[mine[:slots]].tolist()
        heapq.heapify(heap)
        began, ended = [], []
        for steps in left[mine[slots:]].tolist():
            began.append(heap[0])
            ended.append(heap[0] + steps)
            heapq.heapreplace(heap, ended[-1])
        starts[mine[slots:]], ends[mine[slots:]] = began, ended
    return starts, ends
