"""Limit how far sampling runs ahead of the policy: which groups to request, and which groups a step trains on.

Version n is the policy after n training steps, and step n trains version n. A step has P prompts. Sampling may run
`max_policy_lag` = k versions ahead of training. Four rules follow:

- Admission. While the policy is at version v, at most (v + 1 + k) P groups have been requested in total.
- Birth. The birth of a group is the policy version at the time of its request, so all its tokens have that version or
  a later version. After sampling, the birth is the oldest version among the group's tokens.
- Due. A group is due k steps after its birth. That step is the last step that may train on the group.
- Filling. If D_j groups are due by step n + j, step n takes at least D_j - j P of these groups, for each j from 0 to k.
  So step n takes all groups that are due now. It also takes groups that are due later, if the steps from n + 1 to
  their due step have too few places for all of them. The step waits for these groups. Then it adds the groups that
  finished first, until it has P groups.

Therefore a step never trains on a token more than k versions old, and never has to take more than P groups. The reason
is the bound D_j <= (j + 1) P, which holds at the first step. Filling preserves this bound for the next step: groups
that are requested later are due at step n + 1 + k or later, and at most (1 + k) P groups can be open at a time. The
bound on open groups also limits the buffer of finished groups. The terms with j > 0 are necessary if k > 1. Without
these terms, steps could take only young groups, and then more than P old groups could become due at the same step. If
k = 0, a step trains on the groups requested at its start.

A refill (`algorithm.refill_rounds`) requests more groups, and the step takes the same number of additional groups.
The limit on requested groups and the number of groups that the step trains on both grow by this number. So the rules
above still hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Ticket(NamedTuple):
    """A group that may be requested.

    Attributes:
        group: number of the group, unique in the run.
        batch: number that, with the prompt, determines the seeds of the samples. Groups 0 to P - 1 are batch 0, the
            next P groups are batch 1, and so on. The time of the request does not change the batch. For a refill, the
            batch is the number of the step.
        refill: round of refilling; 0 if the group is not part of a refill.
    """

    group: int
    batch: int
    refill: int


@dataclass(slots=True)
class _Open:
    """A requested group that no step has taken yet; `place` is the group's number in the order of finishing."""

    birth: int
    sampled: bool = False
    place: int | None = None


class OpenGroups:
    """All requested groups that no step has taken yet. A step takes each group exactly once, and never too late."""

    def __init__(self, prompts_per_step: int, max_policy_lag: int, steps: int, version: int = 0) -> None:
        """Start without open groups.

        Args:
            prompts_per_step: number of prompts per step (P).
            max_policy_lag: largest lag, in versions (k); 0 for on-policy training.
            steps: number of steps of the whole run. Groups beyond the last step are not requested.
            version: version of the policy.
        """
        self._prompts_per_step = prompts_per_step
        self._lag = max_policy_lag
        self._steps = steps
        self._version = version
        self._asked = self._planned = version * prompts_per_step
        self._finished = 0
        self._open: dict[int, _Open] = {}

    @property
    def version(self) -> int:
        """The version of the policy, which equals the number of the next step."""
        return self._version

    @property
    def unfinished(self) -> list[int]:
        """Groups that were requested and are not finished, in the order of the requests."""
        return [group for group, entry in self._open.items() if entry.place is None]

    @property
    def buffered(self) -> int:
        """Number of finished groups that no step has taken yet."""
        return len(self._open) - len(self.unfinished)

    def admit(self) -> list[Ticket]:
        """Return all groups that may be requested now; the caller must request them."""
        admitted = min(self._version + 1 + self._lag, self._steps) * self._prompts_per_step
        batches = [number // self._prompts_per_step for number in range(self._planned, admitted)]
        self._planned = max(self._planned, admitted)
        return [self._issue(batch, 0) for batch in batches]

    def refill(self, count: int, refill: int) -> list[Ticket]:
        """Return `count` more groups, which the caller must request and the present step must take."""
        assert len(self._open) + count <= (1 + self._lag) * self._prompts_per_step
        return [self._issue(self._version, refill) for _ in range(count)]

    def sampled(self, group: int, oldest_version: int) -> None:
        """Record that all completions of a group have arrived.

        Raises:
            RuntimeError: the group was not requested, or has already arrived; or it has tokens of a version older than
                its request, which happens if a generator missed a push.
        """
        entry = self._open.get(group)
        if entry is None or entry.sampled:
            raise RuntimeError(f"group {group} came {'twice' if entry else 'without a request'}")
        if oldest_version < entry.birth:
            raise RuntimeError(
                f"group {group} was requested at policy version {entry.birth} but has tokens of version "
                f"{oldest_version}: a generator has missed a weight push"
            )
        entry.sampled, entry.birth = True, oldest_version

    def finish(self, group: int) -> None:
        """Record that a sampled group has all its verdicts."""
        entry = self._open[group]
        assert entry.sampled and entry.place is None
        entry.place, self._finished = self._finished, self._finished + 1

    def are_sampled(self, count: int) -> bool:
        """Return True if a step of `count` groups has all its completions; verdicts may still be missing."""
        return self._choose(count, [group for group, entry in self._open.items() if entry.sampled]) is not None

    def are_finished(self, count: int) -> bool:
        """Return True if `count` groups are finished, including all groups that the step must take."""
        return self._choose(count, self._in_order()) is not None

    def take(self, count: int) -> list[int]:
        """Take the present step's groups, in the order of their requests.

        Call this only if `are_finished(count)` is true.
        """
        chosen = self._choose(count, self._in_order())
        assert chosen is not None
        for group in chosen:
            del self._open[group]
        return sorted(chosen)

    def advance(self, version: int) -> None:
        """Record that the generators now sample from `version`, which must be the present version plus 1."""
        assert version == self._version + 1
        self._version = version
        for steps in range(self._lag):
            assert len(self._due(steps)) <= (steps + 1) * self._prompts_per_step

    def state_dict(self) -> dict[str, Any]:
        """Return the open groups, as plain data. A sampled group counts as unfinished until it has all its verdicts."""
        return {
            "prompts_per_step": self._prompts_per_step,
            "max_policy_lag": self._lag,
            "asked": self._asked,
            "planned": self._planned,
            "finished": [[group, self._open[group].birth] for group in self._in_order()],
            "unfinished": self.unfinished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, at the present version. The caller must request unfinished groups again.

        Raises:
            ValueError: the state has open groups, and the settings have changed since these groups were requested.
        """
        is_open = bool(state["finished"] or state["unfinished"])
        before, lag = state["prompts_per_step"], state["max_policy_lag"]
        if is_open and (before != self._prompts_per_step or lag > self._lag):
            raise ValueError(
                f"the checkpoint holds groups that were sampled ahead under rollout.prompts_per_step={before} and "
                f"rollout.max_policy_lag={lag}; they do not fit {self._prompts_per_step} and {self._lag}; resume with "
                "the same rollout.prompts_per_step, and the same or a larger rollout.max_policy_lag"
            )
        self._asked = state["asked"]
        self._planned = state["planned"] if is_open else self._version * self._prompts_per_step
        entries = {group: _Open(self._version) for group in state["unfinished"]}
        for place, (group, birth) in enumerate(state["finished"]):
            entries[group] = _Open(birth, sampled=True, place=place)
        self._finished = len(state["finished"])
        self._open = {group: entries[group] for group in sorted(entries)}

    def _issue(self, batch: int, refill: int) -> Ticket:
        ticket = Ticket(self._asked, batch, refill)
        self._open[ticket.group] = _Open(self._version)
        self._asked += 1
        return ticket

    def _in_order(self) -> list[int]:
        """Return the finished groups, in the order in which they finished."""
        places = {group: entry.place for group, entry in self._open.items() if entry.place is not None}
        return sorted(places, key=lambda group: places[group])

    def _due(self, steps: int) -> set[int]:
        """Return the groups that are due at most `steps` steps after the present step."""
        return {group for group, entry in self._open.items() if entry.birth + self._lag <= self._version + steps}

    def _choose(self, count: int, available: Sequence[int]) -> list[int] | None:
        """Choose `count` available groups; return None if a group that the step must take is not available."""
        chosen: dict[int, None] = {}
        for steps in range(self._lag + 1):
            due = self._due(steps)
            # All groups chosen so far are members of `due` too.
            wanted = len(due) - steps * self._prompts_per_step - len(chosen)
            candidates = [group for group in available if group in due and group not in chosen]
            if len(candidates) < wanted:
                return None
            chosen |= dict.fromkeys(candidates[: max(0, wanted)])
        assert len(chosen) <= count, (chosen, count)
        rest = [group for group in available if group not in chosen]
        chosen |= dict.fromkeys(rest[: count - len(chosen)])
        return list(chosen) if len(chosen) == count else None
