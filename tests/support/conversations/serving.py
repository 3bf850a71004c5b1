"""The agents' server in a thread of its own, for tests that call it as clients do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from conversations.scripted_policy import ScriptedPolicy

from grpo.agents.record import AgentRecord
from grpo.agents.server import AgentServer, OpenConversation


class Serving:
    """A server that runs. `open` and `end` are calls into its thread."""

    def __init__(self, policy: ScriptedPolicy) -> None:
        self._loop = asyncio.new_event_loop()
        self._policy = policy
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,))
        self._thread.start()
        assert ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            self.server = AgentServer(self._policy, model="policy", temperature=1.0)
            ready.set()
            await self.server.serve()

        self._loop.run_until_complete(serve())

    @property
    def url(self) -> str:
        return self.server.base_url

    def open(self, key: int, record: AgentRecord) -> tuple[str, OpenConversation]:
        async def begin() -> tuple[str, OpenConversation]:
            return self.server.open(key, record)

        return asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10)

    def end(self, secret: str) -> None:
        async def end() -> None:
            self.server.end(secret)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self.server.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def serving(policy: ScriptedPolicy) -> Iterator[Serving]:
    running = Serving(policy)
    try:
        yield running
    finally:
        running.stop()
