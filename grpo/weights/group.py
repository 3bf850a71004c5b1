"""The members of a push and their connections: the learner's rank 0 and every process of every engine.

A `RollCall` uses a small key-value store that the learner's rank 0 serves. Every member reports to the store which
stages of a push it has reached. So if a member is missing, the push ends at its deadline with an error that names the
member. `GlooGroup` adds the connections over which bytes are sent.
"""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

SENDER = 0
# Shortest and longest pause between two looks for members, in seconds.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0002, 0.02


@dataclass(frozen=True, slots=True)
class Invitation:
    """The data that a member needs to join.

    Attributes:
        address: address of the learner's rank 0.
        port: port of the store on that address.
        members: names of all members. The learner is the first.
        deadline_s: longest wait for any member, in seconds.
    """

    address: str
    port: int
    members: tuple[str, ...]
    deadline_s: float


class RollCall:
    """The members of a group, and the stages of the push that each member has reached."""

    def __init__(self, invitation: Invitation, rank: int, listener: socket.socket | None = None) -> None:
        """Connect to the store. If there is a `listener`, serve the store.

        Raises:
            TimeoutError: the store does not answer.
        """
        self.rank = rank
        self.members = invitation.members
        self.deadline_s = invitation.deadline_s
        self.ended: str | None = None
        """Why another thread has ended the push; None while the push may continue."""
        try:
            self.store = TCPStore(
                invitation.address,
                invitation.port,
                is_master=listener is not None,
                timeout=datetime.timedelta(seconds=self.deadline_s),
                wait_for_workers=False,
                master_listen_fd=listener.detach() if listener is not None else None,
            )
        except (distributed.DistNetworkError, distributed.DistStoreError) as failure:
            raise TimeoutError(
                f"{self._me} could not reach {self.members[SENDER]} at {invitation.address}:{invitation.port} within "
                f"{self.deadline_s:.0f} s: {failure}"
            ) from failure

    @property
    def _me(self) -> str:
        return self.members[self.rank]

    def arrive(self, where: str) -> None:
        """Report that this member has reached the stage `where`."""
        self.store.set(f"{where}/{self.rank}", "here")

    def wait_for_others(self, where: str, what: str) -> None:
        """Wait until all other members have reached the stage `where`.

        Raises:
            TimeoutError: a member did not reach the stage before the deadline; the message names the missing members.
            RuntimeError: another thread has ended the push.
        """
        keys = [f"{where}/{rank}" for rank in range(len(self.members)) if rank != self.rank]
        until = time.monotonic() + self.deadline_s
        pause_s = _FIRST_PAUSE_S
        # The store's own wait cannot be ended by another thread.
        while not self.store.check(keys):
            self.check()
            if time.monotonic() >= until:
                raise TimeoutError(
                    f"{', '.join(self.missing(where))} did not come within weight_sync.deadline_s="
                    f"{self.deadline_s:.0f}: {what}. For each of them, read its log, and check that it still runs and "
                    f"that it can reach {self._me}'s node"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def check(self) -> None:
        """Raise RuntimeError if another thread has ended the push."""
        if self.ended is not None:
            raise RuntimeError(self.ended)

    def missing(self, where: str) -> list[str]:
        """Return the names of the members that have not reached the stage `where`."""
        return [
            name
            for rank, name in enumerate(self.members)
            if rank != self.rank and not self.store.check([f"{where}/{rank}"])
        ]

    def forget(self, where: str) -> None:
        """Delete the reports of the stage `where`. Call this after all members have left this stage."""
        for rank in range(len(self.members)):
            self.store.delete_key(f"{where}/{rank}")


class GlooGroup:
    """A gloo process group that is separate from this process's `torch.distributed` groups. Rank 0 sends bytes."""

    def __init__(self, roll: RollCall) -> None:
        """Connect every member to every other member. Return when all members are connected.

        Raises:
            TimeoutError: a member did not connect before the deadline.
        """
        self._roll = roll
        roll.arrive("join")
        roll.wait_for_others("join", "joining the group that carries the weights")
        # torch's type stubs are incomplete here, so the type is Any.
        gloo: Any = distributed.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = datetime.timedelta(seconds=roll.deadline_s)
        options._devices = [gloo.create_device(hostname=_own_address(roll.store))]
        options._threads = 2
        self._group = gloo(PrefixStore("gloo", roll.store), roll.rank, len(roll.members), options)
        self._options = distributed.BroadcastOptions()
        self._options.rootRank, self._options.rootTensor = SENDER, 0

    def start_sending(self, parts: Sequence[Tensor]) -> list[distributed.Work]:
        """Start to send parts of a bucket, uint8 on the CPU. Do not change them before `finish_sending`."""
        return [self._start(part) for part in parts]

    def finish_sending(self, works: Sequence[distributed.Work], number: int) -> None:
        """Wait until all receivers have the parts of bucket `number`.

        Raises:
            TimeoutError: the parts were not sent within the deadline; the message names the members.
            RuntimeError: a connection broke.
        """
        for work in works:
            self._finish(work, f"sending bucket {number}")

    def arrive(self, number: int) -> None:
        """Report that this receiver is ready for a bucket."""
        self._roll.arrive(f"bucket {number}")

    def wait_for_receivers(self, number: int) -> None:
        """Wait, as the sender, until all receivers are ready for a bucket.

        Raises:
            TimeoutError: a receiver is not ready; the message names the missing receivers.
        """
        what = f"bucket {number} of the weights cannot be sent until all members are ready"
        self._roll.wait_for_others(f"bucket {number}", what)

    def sent(self, number: int) -> None:
        """Record that the sender has finished a bucket."""
        self._roll.forget(f"bucket {number}")

    def start_receiving(self, parts: Sequence[Tensor]) -> list[distributed.Work]:
        """Start to receive into `parts`, uint8 on the CPU. The parts must be in the order of sending."""
        return [self._start(part) for part in parts]

    def finish_receiving(self, work: distributed.Work, number: int) -> None:
        """Wait for a part of bucket `number`.

        Raises:
            TimeoutError: the part did not arrive within the deadline.
            RuntimeError: the connection broke.
        """
        self._finish(work, f"receiving bucket {number} from {self._roll.members[SENDER]}")

    def close(self) -> None:
        """End the connections."""
        self._group.shutdown()

    def _start(self, part: Tensor) -> distributed.Work:
        assert part.dtype == torch.uint8 and part.is_contiguous() and part.device.type == "cpu"
        work: distributed.Work = self._group.broadcast([part], self._options)
        return work

    def _finish(self, work: distributed.Work, what: str) -> None:
        started = time.monotonic()
        try:
            work.wait()
        except RuntimeError as failure:
            me, seconds = self._roll.members[self._roll.rank], time.monotonic() - started
            if "imed out" in str(failure):
                raise TimeoutError(
                    f"{me}: {what} was not done within weight_sync.deadline_s={self._roll.deadline_s:.0f}; all members "
                    "were ready, so either a member has stopped after that, or the network is too slow for the "
                    f"deadline: {', '.join(self._roll.members)}"
                ) from failure
            raise RuntimeError(
                f"{me}: a connection broke after {seconds:.1f} s of {what}; a member has died or the network "
                f"failed: {', '.join(self._roll.members)}"
            ) from failure


def listen(address: str) -> socket.socket:
    """Return a socket that listens only on this address, on a port that the operating system chooses."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    return listener


def _own_address(store: TCPStore) -> str:
    """Return the address of the network interface through which this node reaches the store."""
    with socket.socket(socket.AF_INET6 if ":" in store.host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends no data; it only makes the system choose a route.
        probe.connect((store.host, store.port))
        return str(probe.getsockname()[0])
