"""The worlds of all conversations: each has a process, forked from a nursery that has loaded the user's code."""

from __future__ import annotations

import math
import selectors
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from grpo.environments import wire
from grpo.environments.contract import Answer, Event, Opening, WorldFailed
from grpo.environments.forking import Forking
from grpo.environments.handles import NurseryDied, WorldHandle, make_handle, pack_setup
from grpo.environments.spec import WorldSpec
from grpo.messages import ChatMessage, WorldReward
from rewards.pool.wire import ProtocolError

_REPLIES = {"open": Opening, wire.ANSWER: Answer, wire.CLOSE: WorldReward}


class WorldProcesses:
    """The worlds of all conversations (`grpo.environments.contract.Worlds`).

    A deadline, a crash or a wrong reply kills only the process of its conversation, with the processes that it started.
    A request gets exactly one event; if a process dies between two requests, the second request gets the failure.

    Use this object in the thread that made it, which must live as long as the object: with the thread, all processes
    end.

    Args:
        spec: tools and environments of the run.
        tool_deadline_s: longest time of a request, in seconds. The process interrupts a tool itself at this time, and
            the conversation goes on; so the process is killed only `grace_s` later.
        memory_mib: MiB of address space of each process; None sets no limit.
        log: file to which the user's code prints; text is appended.
        sessions: function that opens a sandbox session for the tools `python` and `bash`
            (`grpo.environments.world.SessionFactory`), as `package.module:function`; by default
            `grpo.environments.sandbox_tools.SandboxSessions`.
        factory: `package.module:function` that gets the spec and returns the maker of worlds, a function of a row; by
            default the worlds have the tools and environments of the spec.
        grace_s: see `tool_deadline_s`, in seconds.
        start_s: longest time to load the user's code, in seconds.

    Raises:
        ValueError: a tool or an environment cannot be used, or was not loaded in time; or a setting is out of range.
    """

    def __init__(
        self,
        spec: WorldSpec,
        *,
        tool_deadline_s: float,
        memory_mib: int | None,
        log: str | Path,
        sessions: str | None = None,
        factory: str | None = None,
        grace_s: float = 2.0,
        start_s: float = 120.0,
    ) -> None:
        for name, value, least in (
            ("tool_deadline_s", tool_deadline_s, 0.01), ("memory_mib", memory_mib or 64, 64),
            ("grace_s", grace_s, 0.0), ("start_s", start_s, 0.1),
        ):  # fmt: skip
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
        self._deadline_s, self._grace_s = tool_deadline_s, grace_s
        setup = pack_setup(spec, factory, sessions, memory_mib)
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        self._selector = selectors.DefaultSelector()
        self._by_key: dict[int, WorldHandle] = {}
        self._by_identity: dict[int, WorldHandle] = {}
        self._events: list[tuple[int, Event]] = []
        self._seconds: dict[str, list[float]] = defaultdict(list)
        # No deadline passes before this time.
        self._check_at = math.inf
        self._forking = Forking(setup, Path(log), start_s, self._selector)
        try:
            self._tools = self._forking.start()
        except NurseryDied as problem:
            self.stop()
            raise ValueError(str(problem)) from problem
        except BaseException:
            self.stop()
            raise

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Schemas of all tools, for the first prompt."""
        return self._tools

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all worlds without events, and wait until no process remains."""
        for handle in self._by_identity.values():
            handle.close()
        self._by_key.clear()
        self._by_identity.clear()
        self._events.clear()
        self._forking.stop()
        self._selector.close()

    def open(self, key: int, row: Mapping[str, Any]) -> None:
        """Begin the world of a conversation; the event is an `Opening`.

        Args:
            key: number of the conversation, which no other open conversation has.
            row: columns of the row; plain values that can be pickled.

        Raises:
            ValueError: another open conversation has the key.
        """
        if key in self._by_key:
            raise ValueError(f"a conversation with the key {key} is open; close it first")
        try:
            handle = make_handle(key)
        except OSError as problem:
            self._events.append((key, WorldFailed("error", f"no process can be started: {problem}; see `ulimit -n`")))
            return
        self._by_key[key] = self._by_identity[handle.identity] = handle
        self._forking.add(handle)
        handle.ask("open", wire.encode_row(row))
        self._fork_waiting()

    def answer(self, key: int, turn: ChatMessage) -> None:
        """Let the world answer a turn; the event is an `Answer`."""
        self._ask(key, wire.ANSWER, wire.encode_turn(turn))

    def close(self, key: int) -> None:
        """End the world; the event is a `WorldReward`. Afterwards the key is free."""
        self._ask(key, wire.CLOSE, wire.encode_close())

    def abandon(self, key: int) -> None:
        """End the world without an event. If the key is free, nothing happens."""
        handle = self._by_key.pop(key, None)
        if handle is not None:
            self._end(handle)
        self._events = [(each, event) for each, event in self._events if each != key]

    def events(self, wait_s: float = 0.0) -> list[tuple[int, Event]]:
        """Return the events since the last call; wait at most `wait_s` seconds for the first.

        After a `WorldFailed`, the world is gone and the key is free.
        """
        until = time.monotonic() + wait_s
        while True:
            self._look(0.0 if self._events else max(0.0, until - time.monotonic()))
            if self._events or time.monotonic() >= until:
                events, self._events = self._events, []
                return events

    def take_seconds(self) -> dict[str, list[float]]:
        """Return the times of the requests that were answered since the last call.

        Returns:
            `open`, `answer` or `close` -> seconds between each request and its event, measured in the driver.
        """
        seconds, self._seconds = self._seconds, defaultdict(list)
        return dict(seconds)

    def _ask(self, key: int, request: str, frame: bytes) -> None:
        handle = self._by_key[key]
        if handle.failure is not None:
            del self._by_key[key]
            self._events.append((key, handle.failure))
            return
        handle.ask(request, frame)
        if not handle.lost:
            self._send(handle)

    def _look(self, wait_s: float) -> None:
        """Wait until something happens, at most `wait_s` seconds, and turn it into events."""
        now = time.monotonic()
        patience = min(self._forking.listen(wait_s), max(0.0, self._check_at - now))
        self._bury()
        self._fork_waiting()
        for key, mask in self._selector.select(0.0 if self._events else patience):
            if key.data is None or key.data.identity not in self._by_identity:
                continue  # The nursery, whose messages are read below; or a world that has ended meanwhile.
            if mask & selectors.EVENT_WRITE:
                self._send(key.data)
            if mask & selectors.EVENT_READ:
                self._read(key.data)
        self._forking.listen(0.0)
        self._bury()
        self._fork_waiting()
        self._watch()

    def _fork_waiting(self) -> None:
        for handle in self._forking.fork_waiting():
            self._selector.register(handle.connection, selectors.EVENT_READ, handle)
            self._send(handle)

    def _send(self, handle: WorldHandle) -> None:
        """Send as much of a request as the process takes. The time of the request begins when all is sent."""
        sent = handle.flush()
        handle.due = time.monotonic() + self._deadline_s + self._grace_s
        self._check_at = min(self._check_at, handle.due)
        events = selectors.EVENT_READ if sent else selectors.EVENT_READ | selectors.EVENT_WRITE
        if self._selector.get_key(handle.connection).events != events:
            self._selector.modify(handle.connection, events, handle)

    def _read(self, handle: WorldHandle) -> bool:
        """Read once from a process; return whether something arrived."""
        data = handle.receive()
        if data is None:
            return False
        if not data:
            # The reason comes with the end of the process. If the process still lives, it must end.
            handle.lost = True
            self._selector.unregister(handle.connection)
            self._forking.kill(handle)
            return False
        # A long reply that the driver was too busy to read does not miss its deadline.
        handle.due = max(handle.due, time.monotonic() + self._grace_s)
        try:
            for reply in handle.inbox.feed(data):
                self._replied(handle, reply)
                if handle.identity not in self._by_identity:
                    break
        except ProtocolError as problem:
            self._fail(handle, WorldFailed("error", str(problem)))
        return True

    def _replied(self, handle: WorldHandle, reply: Sequence[Any]) -> None:
        """Turn a reply into an event.

        Raises:
            ProtocolError: the reply is wrong, or answers nothing.
        """
        event = wire.decode_event(reply)
        if isinstance(event, WorldFailed):
            self._fail(handle, event)
            return
        if not isinstance(event, _REPLIES.get(handle.request, ())):
            expected = repr(handle.request) if handle.request else "nothing"
            raise ProtocolError(f"the process of the conversation sent {reply[0]!r}, but was asked for {expected}")
        self._seconds[handle.request].append(time.monotonic() - handle.requested_at)
        self._events.append((handle.key, event))
        if handle.request == "open":
            self._forking.opened()
        if handle.request == wire.CLOSE:
            self._end(handle)
            del self._by_key[handle.key]
        handle.request, handle.due = "", math.inf

    def _bury(self) -> None:
        """Fail the worlds whose processes have ended, after their last replies."""
        for identity, reason in self._forking.news():
            handle = self._by_identity.get(identity)
            if handle is None:
                continue
            while handle.process_end is None and not handle.lost and self._read(handle):
                if identity not in self._by_identity:
                    break
            if identity in self._by_identity:
                self._fail(handle, WorldFailed("error", reason))

    def _watch(self) -> None:
        """Kill the processes that have missed their deadlines."""
        now = time.monotonic()
        if now < self._check_at:
            return
        names = {"open": "the environment's reset", wire.CLOSE: "the environment's reward"}
        for handle in [each for each in self._by_identity.values() if each.due <= now]:
            who = names.get(handle.request, "the tools or the environment")
            took = f"{who} took longer than {self._deadline_s:g} s (conversation.tool_deadline_s)"
            self._fail(handle, WorldFailed("timeout", took))
        self._check_at = min((each.due for each in self._by_identity.values()), default=math.inf)

    def _fail(self, handle: WorldHandle, failure: WorldFailed) -> None:
        """End a world. The failure is the event of the request, or of the next request if nothing was asked."""
        self._end(handle)
        if handle.request:
            del self._by_key[handle.key]
            self._events.append((handle.key, failure))
        else:
            handle.failure = failure

    def _end(self, handle: WorldHandle) -> None:
        """Kill the process of a world, if it lives."""
        if self._by_identity.pop(handle.identity, None) is None:
            return
        if handle.process_end is None and not handle.lost:
            self._selector.unregister(handle.connection)
        self._forking.remove(handle)
        handle.close()
