"""Training's groups on their way: asked for, sampled, verified, and taken by a step.

One collector lives as long as the run. Sampling goes on between the steps; `grpo.rollout.staleness` says how far it
may go ahead, and what a step must wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from grpo.rollout.group_state import group_from_state, group_state, known_prompt
from grpo.rollout.groups import Verifying, seed_of
from grpo.rollout.staleness import OpenGroups, Ticket
from grpo.types import Finished, Group, Phase, Prompt, Request

# How often sampled groups, and other verdicts, are looked for while those of one group are waited for.
POLL_S = 0.1


class RequestStream(Protocol):
    """Requests that the generators sample for, as far as a collector needs it."""

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet handed out."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Start sampling; returns at once."""
        ...

    def finished(self, wait: bool = True) -> Finished:
        """Groups that finished since the last call; where asked to wait, at least one."""
        ...


class PhaseWatch(Protocol):
    """Takes the time of a step's phases."""

    def start(self, phase: Phase | None) -> None:
        """End the present phase, if any, and begin `phase`; None only ends."""
        ...


class Collector:
    """From prompts to the groups of a step, through a stream of the generators and the verifiers."""

    def __init__(
        self,
        stream: RequestStream,
        verifying: Verifying,
        open_groups: OpenGroups,
        next_prompts: Callable[[int], Sequence[Prompt]],
        *,
        run_seed: int,
        verdict_wait_s: float,
    ) -> None:
        """Begin with nothing under way.

        Args:
            stream: samples; nobody else's.
            verifying: starts verification and knows when it is over.
            open_groups: which groups may be asked for, and which a step takes.
            next_prompts: how many -> the prompts to ask next.
            run_seed: what the samples' seeds are made of.
            verdict_wait_s: longest wait for verdicts once all that a step needs is sampled.
        """
        self._stream = stream
        self._verifying = verifying
        self._open = open_groups
        self._next_prompts = next_prompts
        self._run_seed = run_seed
        self._verdict_wait_s = verdict_wait_s
        # Of groups that were asked for: what they ask, until they are sampled and finished.
        self._asked: dict[int, tuple[Prompt, int]] = {}
        self._buffer: dict[int, Group] = {}
        self._unsent: list[int] = []
        self._idle = IdleClock()

    def fill(self) -> None:
        """Ask for all groups that may be asked for now, and again for those that a resume found unfinished."""
        self._ask(self._open.admit())

    def take(self, count: int, watch: PhaseWatch, refill: int = 0) -> list[Group]:
        """A step's groups, in the order in which they were asked for; in a refill, after asking for as many more.

        Raises:
            TimeoutError: no group was sampled within the stream's deadline, or a verdict did not come: the pool itself
                hangs, as single verdicts have deadlines.
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
        """Start to verify what has been sampled by now, and buffer what has been verified; waits for nothing."""
        self._receive(self._stream.finished(wait=False) if self._stream.unfinished else [])

    def pushed(self, version: int) -> None:
        """The generators sample from this version from now on."""
        if version != self._open.version:
            self._open.advance(version)

    def metrics(self) -> dict[str, float]:
        """What is under way, and in which share of the time since the last call there was nothing to sample."""
        return {
            "rollout/groups_in_flight": float(len(self._open.unfinished)),
            "rollout/groups_buffered": float(self._open.buffered),
            "time/generator_idle_share": self._idle.take_share(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What is under way, as plain data and tensors; what is not finished will be sampled again."""
        self.drain()
        asked = {group: self._asked[group] for group in self._open.unfinished}
        return {
            "open": self._open.state_dict(),
            "buffer": {group: group_state(one) for group, one in self._buffer.items()},
            "asked": {group: (prompt.id, seed) for group, (prompt, seed) in asked.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Go on from a state; `prompts` are all of the data's.

        Raises:
            ValueError: settings or data do not fit the groups that were under way.
        """
        by_id = {prompt.id: prompt for prompt in prompts}
        self._open.load_state_dict(state["open"])
        self._buffer = {group: group_from_state(one, by_id) for group, one in state["buffer"].items()}
        self._asked = {group: (known_prompt(name, by_id), seed) for group, (name, seed) in state["asked"].items()}
        self._unsent = list(self._asked)

    def _ask(self, tickets: Sequence[Ticket]) -> None:
        prompts = self._next_prompts(len(tickets)) if tickets else ()
        for ticket, prompt in zip(tickets, prompts, strict=True):
            self._asked[ticket.group] = (prompt, seed_of(self._run_seed, ticket.batch, prompt, ticket.refill))
        sent = [*self._unsent, *(ticket.group for ticket in tickets)]
        self._unsent = []
        if sent:
            asked = ((group, *self._asked[group]) for group in sent)
            self._stream.submit([Request(group, prompt.token_ids, seed) for group, prompt, seed in asked])
        self._idle.note(self._stream.unfinished)

    def _receive(self, sampled: Finished) -> None:
        for group, completions in sampled:
            versions = [span.policy_version for one in completions for span in one.spans]
            self._open.sampled(group, min(versions))
            self._verifying.start(group, self._asked[group][0], completions)
        for group, verified in self._verifying.done():
            self._open.finish(group)
            del self._asked[group]
            self._buffer[group] = verified
        self._idle.note(self._stream.unfinished)


class IdleClock:
    """Counts the time in which nothing was asked of the generators."""

    def __init__(self) -> None:
        """Start counting, idle."""
        self._begun = time.monotonic()
        self._since: float | None = self._begun
        self._idle_s = 0.0

    def note(self, unfinished: int) -> None:
        """So many requests are with the generators from now on."""
        now = time.monotonic()
        if self._since is not None:
            self._idle_s += now - self._since
        self._since = None if unfinished else now

    def take_share(self) -> float:
        """Share of the time since this was last asked."""
        self.note(unfinished=int(self._since is None))
        now = time.monotonic()
        share = self._idle_s / (now - self._begun) if now > self._begun else 0.0
        self._begun, self._idle_s = now, 0.0
        return min(1.0, share)
