"""The groups of conversations under way: a group is finished when all its members have ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grpo.types import Completion, Finished, Prompt, Request


class Members:
    """Groups that wait for the completions of their members."""

    def __init__(self, samples: int) -> None:
        """Begin without groups. Each group will have `samples` members."""
        self._samples = samples
        self._groups: dict[int, list[Completion | None]] = {}
        self._finished: Finished = []

    @property
    def unfinished(self) -> int:
        """Number of groups that are not yet taken."""
        return len(self._groups) + len(self._finished)

    @property
    def ready(self) -> bool:
        """Whether `take` has a group."""
        return bool(self._finished)

    def open(self, requests: Sequence[Request], prompts: Sequence[Prompt]) -> Iterator[tuple[Request, int, Prompt]]:
        """Open the groups of requests; yield each member to begin: its request, its number and its prompt.

        Raises:
            ValueError: an unfinished group already has one of these indices.
        """
        for request, prompt in zip(requests, prompts, strict=True):
            if request.index in self._groups:
                raise ValueError(f"group {request.index} is unfinished; give each group a different index")
            self._groups[request.index] = [None] * self._samples
            for member in range(self._samples):
                yield request, member, prompt

    def end(self, group: int, member: int, completion: Completion) -> bool:
        """Give a member its completion; return True if it was the last of its group."""
        members = self._groups[group]
        members[member] = completion
        done = tuple(each for each in members if each is not None)
        if len(done) < len(members):
            return False
        del self._groups[group]
        self._finished.append((group, done))
        return True

    def under_way(self) -> dict[int, dict[int, Completion]]:
        """Return the groups that have not finished: index -> number of each member that has ended -> its completion."""
        return {
            group: {number: each for number, each in enumerate(members) if each is not None}
            for group, members in self._groups.items()
        }

    def require_unfinished(self) -> None:
        """Refuse a wait that would never end.

        Raises:
            RuntimeError: no group is unfinished.
        """
        if not self.unfinished:
            raise RuntimeError("a wait for a group would never end: no conversation is under way")

    def take(self) -> Finished:
        """Return the groups that finished since the last call."""
        handed_out, self._finished = self._finished, []
        return handed_out
