"""How far sampling may run ahead of the policy: which groups may be asked for, and which a step trains on.

Version n is the policy after n training steps, and step n trains version n. Sampling may run `max_policy_lag` = k
versions ahead of training, which makes four rules of a step's P prompts:

- Admission. While the policy is at version v, no more than (v + 1 + k) P groups have been asked for in all.
- Birth. A group is born with the version that was there when it was asked for, so all its tokens are of that version
  or a later one. Once it is sampled, it is born with the oldest version that any of its tokens is of.
- Due. A group is due at the step k after its birth: then at the latest it is trained on.
- Filling. Where D_j groups are due by step n + j, step n takes at least D_j - j P of them, for each j from 0 to k:
  what is due now, and of what is due later as much as the steps until then could not hold. It waits for those, and
  fills up to P with the groups that finished first.

Hence no token that a step trains on is more than k versions old, and a step can always take what it must:
D_j <= (j + 1) P holds at the first step, filling hands it on to the next, and groups asked for later are due at step
n + k or later, when no more than (1 + k) P can be open. That also bounds the buffer of finished groups. Without the
terms of j > 0 it would not do for k > 1: steps that fill up with young groups could leave more than P old ones to fall
due together. With k = 0 the groups of a step are those asked for at its beginning.

A refill (`algorithm.refill_rounds`) asks for some more groups and takes as many more for the step: both counts of
admission and of training rise alike, and what is said above still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Ticket(NamedTuple):
    """A group that may be asked for.

    Attributes:
        group: its number, which no other group of the run has.
        batch: what its samples' seeds are made of, beside the prompt: groups 0 to P - 1 are batch 0, and so on, at
            whatever time they are asked for; of a refill it is the step.
        refill: the round of refilling, 0 for the plain.
    """

    group: int
    batch: int
    refill: int


@dataclass(slots=True)
class _Open:
    """A group that was asked for and not yet taken; `place` tells the order in which groups finished."""

    birth: int
    sampled: bool = False
    place: int | None = None


class OpenGroups:
    """Every group that is asked for, until a step takes it: each is taken once, and none too late."""

    def __init__(self, prompts_per_step: int, max_policy_lag: int, steps: int, version: int = 0) -> None:
        """Start with nothing open.

        Args:
            prompts_per_step: P.
            max_policy_lag: k, 0 for on-policy.
            steps: of the whole run; no group is asked for that no step would train on.
            version: of the policy.
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
        """The policy's, which is also the number of the step that comes next."""
        return self._version

    @property
    def unfinished(self) -> list[int]:
        """Groups that were asked for and are not finished, in the order of asking."""
        return [group for group, one in self._open.items() if one.place is None]

    @property
    def buffered(self) -> int:
        """Groups that are finished and wait for a step."""
        return len(self._open) - len(self.unfinished)

    def admit(self) -> list[Ticket]:
        """All groups that may be asked for now; the caller must ask for them."""
        admitted = min(self._version + 1 + self._lag, self._steps) * self._prompts_per_step
        batches = [number // self._prompts_per_step for number in range(self._planned, admitted)]
        self._planned = max(self._planned, admitted)
        return [self._issue(batch, 0) for batch in batches]

    def refill(self, count: int, refill: int) -> list[Ticket]:
        """So many more for the present step, which must take as many more; the caller must ask for them."""
        assert len(self._open) + count <= (1 + self._lag) * self._prompts_per_step
        return [self._issue(self._version, refill) for _ in range(count)]

    def sampled(self, group: int, oldest_version: int) -> None:
        """All completions of a group are there.

        Raises:
            RuntimeError: it was not asked for, or is already there; or it holds tokens of a version from before it was
                asked for, which a generator that missed a push would give.
        """
        one = self._open.get(group)
        if one is None or one.sampled:
            raise RuntimeError(f"group {group} came {'twice' if one else 'without having been asked for'}")
        if oldest_version < one.birth:
            raise RuntimeError(
                f"group {group} was asked for at policy version {one.birth} and has tokens of version "
                f"{oldest_version}: a generator has missed a weight push"
            )
        one.sampled, one.birth = True, oldest_version

    def finish(self, group: int) -> None:
        """A sampled group has all of its verdicts."""
        one = self._open[group]
        assert one.sampled and one.place is None
        one.place, self._finished = self._finished, self._finished + 1

    def are_sampled(self, count: int) -> bool:
        """A step that wants `count` groups need not wait for completions, though perhaps for verdicts."""
        return self._choose(count, [group for group, one in self._open.items() if one.sampled]) is not None

    def are_finished(self, count: int) -> bool:
        """A step that wants `count` groups can take them: so many are finished, with all that it must take."""
        return self._choose(count, self._in_order()) is not None

    def take(self, count: int) -> list[int]:
        """The present step's groups, in the order in which they were asked for.

        Call only where `are_finished(count)`.
        """
        chosen = self._choose(count, self._in_order())
        assert chosen is not None
        for group in chosen:
            del self._open[group]
        return sorted(chosen)

    def advance(self, version: int) -> None:
        """The generators sample from `version` from now on, one step after the present one."""
        assert version == self._version + 1
        self._version = version
        for steps in range(self._lag):
            assert len(self._due(steps)) <= (steps + 1) * self._prompts_per_step

    def state_dict(self) -> dict[str, Any]:
        """What is open, as plain data. Groups that are not finished are told as such, sampled or not."""
        return {
            "prompts_per_step": self._prompts_per_step,
            "max_policy_lag": self._lag,
            "asked": self._asked,
            "planned": self._planned,
            "finished": [[group, self._open[group].birth] for group in self._in_order()],
            "unfinished": self.unfinished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, at the present version. Unfinished groups are to be asked for again, and are born anew.

        Raises:
            ValueError: groups are open, and the settings that they were asked for under have changed.
        """
        is_open = bool(state["finished"] or state["unfinished"])
        before, lag = state["prompts_per_step"], state["max_policy_lag"]
        if is_open and (before != self._prompts_per_step or lag > self._lag):
            raise ValueError(
                f"the checkpoint holds groups that were sampled ahead under rollout.prompts_per_step={before} and "
                f"rollout.max_policy_lag={lag}, which {self._prompts_per_step} and {self._lag} have no place for; "
                "resume with the same prompts and the same lag or a larger one"
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
        """The finished, in the order of finishing."""
        places = {group: one.place for group, one in self._open.items() if one.place is not None}
        return sorted(places, key=lambda group: places[group])

    def _due(self, steps: int) -> set[int]:
        """What is due by so many steps after the present one."""
        return {group for group, one in self._open.items() if one.birth + self._lag <= self._version + steps}

    def _choose(self, count: int, there: Sequence[int]) -> list[int] | None:
        """So many of those that are there, the first first, with all that must be taken now; None where some is not."""
        chosen: dict[int, None] = {}
        for steps in range(self._lag + 1):
            due = self._due(steps)
            # Whatever is chosen so far is due by then, too.
            wanted = len(due) - steps * self._prompts_per_step - len(chosen)
            candidates = [group for group in there if group in due and group not in chosen]
            if len(candidates) < wanted:
                return None
            chosen |= dict.fromkeys(candidates[: max(0, wanted)])
        assert len(chosen) <= count, (chosen, count)
        rest = [group for group in there if group not in chosen]
        chosen |= dict.fromkeys(rest[: count - len(chosen)])
        return list(chosen) if len(chosen) == count else None
