"""Generators on a clock that only counts, one event after the other: what the simulator is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Sampled:
    group: int
    length: float
    left: float
    number: int = 0
    runs: bool = False


@dataclass
class VirtualReplica:
    """Decodes a token of every running sequence in `base_s + sequence_s * running` seconds."""

    slots: int
    base_s: float
    sequence_s: float
    now_s: float = 0.0
    blocked_until_s: float = 0.0
    busy_s: float = 0.0
    sequences: list[Sampled] = field(default_factory=list)
    ended_s: dict[int, float] = field(default_factory=dict)

    def groups(self) -> set[int]:
        return {one.group for one in self.sequences}

    def submit(self, group: int, lengths: Sequence[int]) -> None:
        self.sequences += [
            Sampled(group, float(length), float(length), number) for number, length in enumerate(lengths)
        ]
        self._fill()

    def next_end_s(self) -> float:
        """When the next sequence ends; infinity where there is none."""
        running = [one for one in self.sequences if one.runs]
        if not running:
            return float("inf")
        return max(self.now_s, self.blocked_until_s) + min(one.left for one in running) * self._token_s(running)

    def run_until(self, time_s: float) -> None:
        while True:
            end_s = self.next_end_s()
            if end_s > time_s:
                break
            self._decode(end_s, to_next_end=True)
        if self.sequences:
            self._decode(time_s)
        self.now_s = time_s

    def hold_until(self, time_s: float) -> None:
        """Nothing is sampled until then."""
        self.blocked_until_s = time_s + max(0.0, self.blocked_until_s - self.now_s)
        self.now_s = time_s

    def _token_s(self, running: Sequence[Sampled]) -> float:
        return self.base_s + self.sequence_s * len(running)

    def _decode(self, time_s: float, to_next_end: bool = False) -> None:
        running = [one for one in self.sequences if one.runs]
        since_s = max(self.now_s, self.blocked_until_s)
        steps = min(one.left for one in running)
        if not to_next_end:
            steps = max(0.0, time_s - since_s) / self._token_s(running)
        for one in running:
            one.left -= steps
        self.busy_s += time_s - self.now_s
        self.now_s = time_s
        for one in [one for one in running if one.left <= 1e-9]:
            self.sequences.remove(one)
            if one.group not in self.groups():
                self.ended_s[one.group] = time_s
        self._fill()

    def _fill(self) -> None:
        free = self.slots - sum(one.runs for one in self.sequences)
        for one in [one for one in self.sequences if not one.runs][: max(0, free)]:
            one.runs = True


@dataclass
class VirtualReplicas:
    """All replicas; what is submitted goes to the one with the fewest unfinished groups."""

    replicas: list[VirtualReplica]
    now_s: float = 0.0

    def submit(self, group: int, lengths: Sequence[int], prefill_s: float = 0.0) -> None:
        chosen = min(self.replicas, key=lambda replica: len(replica.groups()))
        chosen.blocked_until_s = max(chosen.blocked_until_s, self.now_s) + prefill_s
        chosen.submit(group, lengths)

    def run_until(self, time_s: float) -> None:
        for replica in self.replicas:
            replica.run_until(time_s)
        self.now_s = time_s

    def run_to_next_end(self) -> None:
        end_s = min(replica.next_end_s() for replica in self.replicas)
        assert end_s < float("inf"), "nothing is left to sample"
        self.run_until(end_s)

    def hold(self, seconds: float) -> None:
        for replica in self.replicas:
            replica.hold_until(self.now_s + seconds)
        self.now_s += seconds

    def ended_s(self) -> dict[int, float]:
        """When each finished group was finished."""
        return {group: end_s for replica in self.replicas for group, end_s in replica.ended_s.items()}

    def begun(self, size: int) -> set[int]:
        """Groups of which a completion has a whole token; a group has `size` of them."""
        found = set(self.ended_s())
        for replica in self.replicas:
            for group in replica.groups():
                own = [one for one in replica.sequences if one.group == group]
                if len(own) < size or any(one.length - one.left >= 1 for one in own):
                    found.add(group)
        return found

    @property
    def busy_s(self) -> float:
        return sum(replica.busy_s for replica in self.replicas)
