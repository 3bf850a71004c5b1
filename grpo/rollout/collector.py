"""Collect the groups for training: request groups, let them be sampled and verified, and give them to a step.

A run has one collector. Sampling continues between the steps. `grpo.rollout.staleness` defines how far sampling may run
ahead, and which groups a step must wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from grpo.rollout.group_state import group_from_state, group_state, known_prompt
from grpo.rollout.groups import Verifying, seed_of
from grpo.rollout.staleness import OpenGroups, Ticket
from grpo.rollout.under_way import sampled_group
from grpo.types import Finished, Group, Phase, Prompt, Request

# While `take` waits for the verdicts of a group: seconds between two polls for newly sampled groups and for verdicts of
# other groups.
POLL_S = 0.1


class RequestStream(Protocol):
    """A stream of requests to the generators: the part of its interface that a collector needs."""

    @property
    def unfinished(self) -> int:
        """Number of requests that were submitted and not yet returned."""
        ...

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        """Start sampling, and return at once. Conversations also need the prompt of each request."""
        ...

    def finished(self, wait: bool = True) -> Finished:
        """Return the groups that finished since the last call; if `wait` is set, wait for at least one group."""
        ...


class ResumedStream(Protocol):
    """A stream of conversations that go on after a resume (`grpo.rollout.conversations.Conversations`)."""

    def under_way(self) -> dict[int, dict[str, Any]]:
        """Return index -> state of the groups under way, for a checkpoint."""
        ...

    def expect(self, groups: Mapping[int, Mapping[str, Any]]) -> None:
        """Take the state of groups that will be submitted again."""
        ...

    def take_resumed(self) -> dict[str, float]:
        """Return metrics of the conversations that were under way at the resume, since the last call."""
        ...


class PhaseWatch(Protocol):
    """Measures the time of a step's phases."""

    def start(self, phase: Phase | None) -> None:
        """End the present phase, if any, and begin `phase`; if `phase` is None, only end the present phase."""
        ...


class Collector:
    """Makes the groups of a step from prompts, with a stream of the generators and with the verifiers."""

    def __init__(
        self,
        stream: RequestStream,
        verifying: Verifying,
        open_groups: OpenGroups,
        next_prompts: Callable[[int], Sequence[Prompt]],
        *,
        run_seed: int,
        verdict_wait_s: float,
        resumed: ResumedStream | None = None,
    ) -> None:
        """Begin before any group is requested.

        Args:
            stream: stream that samples; no other object may use it.
            verifying: object that starts the verification of a group and returns the group when it is verified.
            open_groups: object that decides which groups to request, and which groups a step takes.
            next_prompts: function that takes a number n, and returns the next n prompts of the data.
            run_seed: seed of the run, from which the seeds of the samples are computed.
            verdict_wait_s: longest wait for verdicts, in seconds, after all groups of a step are sampled.
            resumed: the stream, if its conversations go on after a resume; None if they begin anew.
        """
        self._resumed = resumed
        self._stream = stream
        self._verifying = verifying
        self._open = open_groups
        self._next_prompts = next_prompts
        self._run_seed = run_seed
        self._verdict_wait_s = verdict_wait_s
        # The prompt and the seed of each requested group that is not finished.
        self._asked: dict[int, tuple[Prompt, int]] = {}
        self._buffer: dict[int, Group] = {}
        self._unsent: list[int] = []
        self._idle = IdleClock()

    def fill(self) -> None:
        """Request all groups that may be requested now. After a resume, also request the unfinished groups again."""
        self._ask(self._open.admit())

    def take(self, count: int, watch: PhaseWatch, refill: int = 0) -> list[Group]:
        """Return a step's groups, in the order of their requests; in a refill, first request `count` more groups.

        Raises:
            TimeoutError: no group was sampled within the stream's deadline, or a verdict did not arrive. Each verdict
                has a deadline, so a missing verdict means that the pool itself hangs.
        """
        if refill:
            self._ask(self._open.refill(count, refill))
        give_up_at = None
        self.drain()
        while not self._open.are_finished(count):
            if not self._open.are_sampled(count):
                watch.start(Phase.GENERATE)
                self._receive(self._stream.finished())
            else:
                watch.start(Phase.VERIFY)
                give_up_at = give_up_at or time.monotonic() + self._verdict_wait_s
                if self._verifying.wait(POLL_S):
                    self._receive([])
                elif time.monotonic() > give_up_at:
                    raise self._verifying.late(self._verdict_wait_s)
                else:
                    self.drain()
        watch.start(None)
        return [self._buffer.pop(group) for group in self._open.take(count)]

    def drain(self) -> None:
        """Without waiting, start to verify the sampled groups, and put the verified groups into the buffer."""
        self._receive(self._stream.finished(wait=False) if self._stream.unfinished else [])

    def pushed(self, version: int) -> None:
        """Record that the generators now sample from this version."""
        if version != self._open.version:
            self._open.advance(version)

    def metrics(self) -> dict[str, float]:
        """Return how many groups are unfinished and buffered, and the generators' idle share since the last call.

        If conversations go on after a resume, also how many did, and how many began anew.
        """
        return {
            **(self._resumed.take_resumed() if self._resumed else {}),
            "rollout/groups_in_flight": float(len(self._open.unfinished)),
            "rollout/groups_buffered": float(self._open.buffered),
            "time/generator_idle_share": self._idle.take_share(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the open groups, as plain data and tensors.

        Unfinished groups will be sampled again, apart from the finished turns of conversations that go on after a
        resume.
        """
        self.drain()
        requests = {group: self._asked[group] for group in self._open.unfinished}
        under_way = {}
        if self._resumed is not None:
            sampled = {group: sampled_group(each) for group, each in self._verifying.sampled().items()}
            under_way = {"under_way": {**self._resumed.under_way(), **sampled}}
        return {
            **under_way,
            "open": self._open.state_dict(),
            "buffer": {number: group_state(group) for number, group in self._buffer.items()},
            "asked": {group: (prompt.id, seed) for group, (prompt, seed) in requests.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Restore a state; `prompts` are all prompts of the data.

        Raises:
            ValueError: settings or data do not fit the open groups.
        """
        by_id = {prompt.id: prompt for prompt in prompts}
        self._open.load_state_dict(state["open"])
        self._buffer = {number: group_from_state(group, by_id) for number, group in state["buffer"].items()}
        self._asked = {group: (known_prompt(name, by_id), seed) for group, (name, seed) in state["asked"].items()}
        self._unsent = list(self._asked)
        if self._resumed is not None:
            # A checkpoint of a run that began its conversations anew has no such groups.
            self._resumed.expect(state.get("under_way", {}))

    def _ask(self, tickets: Sequence[Ticket]) -> None:
        prompts = self._next_prompts(len(tickets)) if tickets else ()
        for ticket, prompt in zip(tickets, prompts, strict=True):
            self._asked[ticket.group] = (prompt, seed_of(self._run_seed, ticket.batch, prompt, ticket.refill))
        sent = [*self._unsent, *(ticket.group for ticket in tickets)]
        self._unsent = []
        if sent:
            requests = [(group, *self._asked[group]) for group in sent]
            self._stream.submit(
                [Request(group, prompt.token_ids, seed) for group, prompt, seed in requests],
                [prompt for _, prompt, _ in requests],
            )
        self._idle.note(self._stream.unfinished)

    def _receive(self, sampled: Finished) -> None:
        for group, completions in sampled:
            versions = [span.policy_version for completion in completions for span in completion.spans]
            self._open.sampled(group, min(versions))
            self._verifying.start(group, self._asked[group][0], completions)
        for group, verified in self._verifying.done():
            self._open.finish(group)
            del self._asked[group]
            self._buffer[group] = verified
        self._idle.note(self._stream.unfinished)


class IdleClock:
    """Measures the time during which the generators have no requests."""

    def __init__(self) -> None:
        """Start to measure. The generators count as idle until the first `note`."""
        self._begun = time.monotonic()
        self._since: float | None = self._begun
        self._idle_s = 0.0

    def note(self, unfinished: int) -> None:
        """Record that the generators now have `unfinished` requests."""
        now = time.monotonic()
        if self._since is not None:
            self._idle_s += now - self._since
        self._since = None if unfinished else now

    def take_share(self) -> float:
        """Return the share of idle time since the last call."""
        self.note(unfinished=int(self._since is None))
        now = time.monotonic()
        share = self._idle_s / (now - self._begun) if now > self._begun else 0.0
        self._begun, self._idle_s = now, 0.0
        return min(1.0, share)
