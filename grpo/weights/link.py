"""The driver's part in pushes that bypass Ray's object store: connect learner and generators, and announce buckets.

Each learner rank and each generator runs in a separate process (`Remote`), for example as a Ray actor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, TypeVarTuple

from grpo.types import ActorId, ActorKind, Phase
from grpo.weights.buckets import Bucket, TensorInfo, cut
from grpo.weights.outlet import WeightOutlet
from grpo.weights.sender import GroupTransport, Handle

Subject = TypeVar("Subject", covariant=True)
More = TypeVarTuple("More")

# Learner and generators wait for `deadline_s` seconds, and then raise an error that names the missing member. The
# driver waits longer by this number of seconds, so that it gets that error.
GRACE_S = 15.0


class Remote(Protocol[Subject]):
    """A handle of a learner rank, a generator, or a test substitute in a separate process."""

    def start(self, verb: Callable[[Subject, *More], Any], doing: Phase | None, *arguments: *More) -> Any:
        """Start `verb(subject, *arguments)` in that process; return a reference to its result."""
        ...

    def start_aside(self, verb: Callable[[Subject, *More], Any], *arguments: *More) -> Any:
        """Start `verb(subject, *arguments)` in another thread of that process, beside a call that has not ended."""
        ...


class SendingRank(Protocol):
    """The part of a learner rank that a link calls."""

    @property
    def outlet(self) -> WeightOutlet:
        """The object that sends the rank's weights."""
        ...


class Receiver(Protocol):
    """The part of a generator that a link calls."""

    def join_sender(self, invitation: dict[str, Any]) -> None:
        """Connect to the learner for later pushes."""
        ...


class WaitFor(Protocol):
    """The type of the function `grpo.cluster.waiting.wait_for`."""

    def __call__(
        self, references: Sequence[Any], deadline_s: float, what: str, meanwhile: Callable[[], None] | None = None
    ) -> list[Any]:
        """Return all results, or raise TimeoutError. Until then, call `meanwhile` again and again."""
        ...


class Targets:
    """The generators that get a push."""

    def __init__(self, receivers: Callable[[], Sequence[Remote[Receiver]]]) -> None:
        """Start with all generators as targets. `receivers` is called often, and must return the current generators."""
        self._receivers = receivers
        self._chosen: Sequence[Remote[Receiver]] | None = None

    @property
    def every(self) -> list[Remote[Receiver]]:
        """All generators."""
        return list(self._receivers())

    @property
    def now(self) -> list[Remote[Receiver]]:
        """The generators that get the next push."""
        return self.every if self._chosen is None else list(self._chosen)

    @contextlib.contextmanager
    def only(self, receivers: Sequence[Remote[Receiver]]) -> Iterator[None]:
        """Inside the context, pushes go only to these generators, for example to a restarted generator."""
        self._chosen = receivers
        try:
            yield
        finally:
            self._chosen = None


class Holders:
    """The generators that got the last push completely. A push to other generators must send all elements."""

    def __init__(self, receivers: Callable[[], Sequence[Remote[Receiver]]]) -> None:
        self.targets = Targets(receivers)
        self._holding: list[Remote[Receiver]] = []

    @contextlib.contextmanager
    def push(self) -> Iterator[bool]:
        """Run one push inside this context. The context yields whether the push must send all elements.

        After an interrupted push, no generator counts as a holder.
        """
        targets = self.targets.now
        whole = targets != self._holding
        self._holding = []
        yield whole
        self._holding = targets


class WeightLink:
    """The group of learner and generators for pushes. If a member gets a new process, a new group is made."""

    def __init__(
        self,
        transport: GroupTransport,
        receivers: Callable[[], Sequence[Remote[Receiver]]],
        workers_each: int,
        deadline_s: float,
        wait_for: WaitFor,
        *,
        sparse: bool = False,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Begin without connections; the first push connects.

        Args:
            transport: transport of the bytes.
            receivers: function that returns the current generators.
            workers_each: number of processes with weights in each generator's engine.
            deadline_s: longest wait for any part of a push, in seconds.
            wait_for: function that waits for the results of calls to actors.
            sparse: whether a push sends only the changes since the last push, if the generators got the last push.
            lost: function that describes the generator that was lost during this push; None if no generator was lost.
                It is called while the learner sends.
        """
        self._lost = lost
        self._transport: GroupTransport = transport
        self._targets = Targets(receivers)
        self._sparse = sparse
        self._workers_each = workers_each
        self._deadline_s = deadline_s
        self._wait_for = wait_for
        self._joined: list[Remote[Receiver]] = []
        self._numbers = itertools.count()

    def buckets(
        self, ranks: Sequence[Remote[SendingRank]], tensors: Sequence[TensorInfo], bucket_bytes: int
    ) -> Iterator[Bucket]:
        """Yield the description of each bucket when the learner begins to send the bucket.

        The caller must pass each description to every generator's `update`. The caller must fetch bucket n + 2 only
        after all generators have loaded bucket n, because with `ipc` the learner's memory has space for two buckets.

        Raises:
            TimeoutError: a member did not connect or was not ready; the message names the member.
            RuntimeError: a generator was lost, so the learner has ended the push.
        """
        try:
            self.join(ranks)
            for bucket in cut(tensors, bucket_bytes):
                numbered = dataclasses.replace(bucket, number=next(self._numbers), sparse=self._sparse)
                sending = [
                    rank.start(lambda rank, bucket: rank.outlet.send(bucket), Phase.SYNC, numbered) for rank in ranks
                ]
                if self._transport == "ipc":
                    handles: list[Handle] = self._wait(sending, f"bucket {numbered.number} to be gathered")
                    yield dataclasses.replace(numbered, handles=tuple(handles))
                else:
                    yield numbered
                    self._wait_for_sender(
                        ranks, sending, f"bucket {numbered.number} to be gathered and sent by the learner"
                    )
        except BaseException:
            # Connections of an interrupted push cannot be used again, so the next push makes new connections.
            self._joined = []
            raise

    def only(self, receivers: Sequence[Remote[Receiver]]) -> AbstractContextManager[None]:
        """Inside the context, pushes go only to these generators."""
        return self._targets.only(receivers)

    def join(self, ranks: Sequence[Remote[SendingRank]]) -> None:
        """Connect the learner's ranks and all generators, unless they are connected.

        Raises:
            TimeoutError: a member did not connect; the message names the member.
        """
        every, receivers = self._targets.every, self._targets.now
        if receivers == self._joined:
            return
        members = ["the learner"] + [
            f"{ActorId(ActorKind.GENERATOR, every.index(receiver))}"
            + (f" (worker {worker})" if self._workers_each > 1 else "")
            for receiver in receivers
            for worker in range(self._workers_each)
        ]
        meeting = (self._transport, members, self._deadline_s)
        opening = [rank.start(lambda rank, *meeting: rank.outlet.open(*meeting), None, *meeting) for rank in ranks]
        address, port = self._wait(opening, "the learner to prepare for the generators")[0]
        joining = [rank.start(lambda rank: rank.outlet.join(), None) for rank in ranks]
        invitation = {"address": address, "port": port, "members": members, "deadline_s": self._deadline_s}
        coming = [
            receiver.start(
                lambda generator, invitation: generator.join_sender(invitation),
                Phase.SYNC,
                {**invitation, "first_rank": 1 + place * self._workers_each},
            )
            for place, receiver in enumerate(receivers)
        ]
        # The learner's error names the missing member, so wait for the learner first.
        self._wait_for_sender(ranks, joining, "the learner to connect to the generators")
        self._wait(coming, "the generators to connect to the learner")
        self._joined = receivers

    def _wait_for_sender(self, ranks: Sequence[Remote[SendingRank]], sending: Sequence[Any], what: str) -> None:
        """Wait for calls of the learner that wait for generators. If a generator is lost, end these calls at once."""
        ending: list[Any] = []

        def end_if_lost() -> None:
            if not ending and (lost := self._lost()):
                reason = f"the push of weights was ended, because {lost}"
                ending.extend(rank.start_aside(lambda rank, why: rank.outlet.abort(why), reason) for rank in ranks)

        try:
            self._wait_for(sending, self._deadline_s + GRACE_S, what, end_if_lost)
        finally:
            # The next push makes new connections, which a late abort must not end.
            if ending:
                self._wait(ending, "the learner to end the push")

    def _wait(self, references: Sequence[Any], what: str) -> list[Any]:
        return self._wait_for(references, self._deadline_s + GRACE_S, what)
