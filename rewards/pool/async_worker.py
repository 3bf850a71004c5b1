"""The loop of a worker of async verifiers: one event loop runs many calls at the same time."""

from __future__ import annotations

import asyncio
import functools
import pickle
import socket
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any

from rewards import stage
from rewards.adapt import Adapted
from rewards.calling import Batch
from rewards.pool import wire
from rewards.raised import describe
from rewards.verdict import Verdict, error

# The messages of the parent: calls to begin, or identities of calls to cancel.
RUN, CANCEL = "run", "cancel"


def serve(connection: socket.socket, page: stage.SharedPage, verifiers: Mapping[str, Adapted]) -> None:
    """Run calls, and answer each call when it ends, until the parent closes the connection."""
    asyncio.run(_Calls(page, verifiers).serve(connection))


class _Calls:
    """The calls that are under way."""

    def __init__(self, page: stage.SharedPage, verifiers: Mapping[str, Adapted]) -> None:
        self._page, self._verifiers = page, verifiers
        # For each identity of a call: the call's task, and a list with the stage of the task as its only item.
        self._tasks: dict[int, tuple[asyncio.Task[None], list[str]]] = {}
        self._given_up: set[int] = set()
        self._hits: dict[str, int] = {}

    async def serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection)
        while True:
            try:
                header = await reader.readexactly(wire.LENGTH.size)
                body = await reader.readexactly(wire.LENGTH.unpack(header)[0])
            except asyncio.IncompleteReadError:
                return
            kind, items = pickle.loads(body)
            if kind == RUN:
                for identity, *call in items:
                    box = ["start"]
                    self._tasks[identity] = asyncio.create_task(self._answer(writer, box, identity, *call)), box
            else:
                for identity in items:
                    if identity in self._tasks:  # otherwise the call has been answered
                        task, box = self._tasks[identity]
                        writer.write(wire.encode_reply(["stage", identity, box[0]]))
                        self._given_up.add(identity)
                        task.cancel()

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        box: list[str],
        identity: int,
        name: str,
        completions: tuple[str, ...],
        reference: Any,
        prompt: Mapping[str, Any],
        lists: Mapping[str, Any] | None,
    ) -> None:
        verifier, begun = self._verifiers[name], time.perf_counter()
        stage.follow_call(box)
        batch = (
            verifier.alone(completions[0], reference, prompt)
            if lists is None
            else Batch(completions, reference, prompt, lists)
        )
        try:
            verdicts: list[Verdict] = await _Noted(verifier.judge_async(batch), identity, box, self._page)
        except asyncio.CancelledError as problem:
            if identity in self._given_up:
                writer.write(wire.encode_reply(["cancelled", identity]))
                return
            verdicts = [error(describe(problem))] * len(completions)
        finally:
            self._given_up.discard(identity)
            del self._tasks[identity]
        hits, before = verifier.cache_hits, self._hits.get(name, 0)
        self._hits[name] = hits
        rest = [time.perf_counter() - begun, 0.0, int(hits > before)]
        for verdict in verdicts:
            writer.write(wire.encode_reply([identity, wire.verdict_fields(verdict), *rest]))


class _Noted:
    """Awaits a coroutine, and writes to the shared page whenever the coroutine has the processor.

    So the parent knows which call blocks the loop or has ended the process, and at which stage the call was.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, list[Verdict]], identity: int, box: list[str], page: stage.SharedPage
    ) -> None:
        self._coroutine, self._identity, self._box, self._page = coroutine, identity, box, page

    def __await__(self) -> Generator[Any, Any, list[Verdict]]:
        step: Callable[[], Any] = functools.partial(self._coroutine.send, None)
        while True:
            self._page.write_stage(self._box[0])
            self._page.write_running(self._identity)
            try:
                awaited = step()
            except StopIteration as end:
                verdicts: list[Verdict] = end.value
                return verdicts
            finally:
                self._page.write_running(-1)
            try:
                step = functools.partial(self._coroutine.send, (yield awaited))
            except BaseException as thrown:  # a cancellation, or the end of this generator: the coroutine must see it
                step = functools.partial(self._coroutine.throw, thrown)
