"""Conversations that a user's program plays with the policy, in the driver. No call of the driver blocks."""

from __future__ import annotations

import asyncio
import json
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from grpo.agents.program import AgentProgram, BadOutput, Printed, ProgramRun, run_program
from grpo.agents.record import AgentLimits, AgentRecord
from grpo.agents.server import AgentServer, OpenConversation, PolicySampler
from grpo.conversation.renderer import ChatRenderer
from grpo.environments.contract import WorldFailed
from grpo.messages import ConversationEnd, WorldReward
from grpo.types import Completion
from grpo.visible import one_line, visible

# Name of the policy for clients.
MODEL = "policy"
LOG = "agents.log"
# Longest piece of a failed program's standard error in the log, in characters.
_LOGGED = 16_000
_CLOSE_S = 10.0

Finished = Completion | WorldFailed


class Agents:
    """All conversations of a run that are played by programs with a client of their own.

    A thread has the server, the records of the calls, and the programs. Each program gets, beside a few variables of
    the driver (`grpo.agents.program.PASSED`):

    | variable | value |
    |---|---|
    | `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `OPENAI_MODEL` | the server, the conversation's key, the policy's name |
    | `GRPO_ROW` | JSON file with the row's columns; standard input has the same text |
    | `GRPO_MESSAGES` | JSON file with the messages of the row's prompt, as Chat Completions has them |
    | `TMPDIR` | folder that is removed after the conversation |

    Exit code 0 ends the conversation (`over`). If the last line of the standard output is a JSON object, its `answer`
    is judged in place of the policy's last turn, and its `reward` (with `parts`) is the environment's. After a limit
    of turns or tokens, the conversation has this end whatever the exit code is. Everything else is a failure without
    a score: another exit code, a signal, the deadline, an unusable reward, no call at all, an engine that failed.
    """

    def __init__(
        self,
        program: AgentProgram,
        renderer: ChatRenderer,
        sampler: PolicySampler,
        *,
        limits: AgentLimits,
        temperature: float,
        log_folder: Path,
        programs: int = 256,
    ) -> None:
        """Start the server.

        Args:
            program: program of each conversation.
            renderer: chat template of the policy. Only the agents' thread may use it, and its tokenizer.
            sampler: where the policy's answers come from; another thread calls it.
            limits: limits of each conversation.
            temperature: temperature of the run.
            log_folder: folder of `agents.log`, which has the standard error of programs that failed.
            programs: largest number of programs at once. The others wait, and their deadlines wait, too.

        Raises:
            OSError: the server cannot listen.
        """
        self._program, self._renderer, self._sampler, self._limits = program, renderer, sampler, limits
        self._temperature, self._log, self._programs = temperature, log_folder / LOG, programs
        self._finished: queue.SimpleQueue[tuple[int, Finished]] = queue.SimpleQueue()
        self._folder = Path(tempfile.mkdtemp(prefix="grpo-agents-"))
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        started: Future[AgentServer] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="agents", daemon=True)
        self._thread.start()
        self._server = started.result()
        self.base_url = self._server.base_url

    def start(
        self, key: int, row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = (), *, seed: int = 0
    ) -> None:
        """Begin a conversation.

        Args:
            key: key of the conversation; no conversation under way has it.
            row: columns of the row, as verifiers get them.
            messages: messages of the row's prompt.
            seed: seed of the conversation. Equal seeds and calls give equal samples.
        """
        texts = json.dumps(dict(row), default=str), json.dumps(list(messages), default=str)
        self._require_alive()
        self._loop.call_soon_threadsafe(self._begin, key, texts, seed)

    def abandon(self, key: int) -> None:
        """End a conversation without a result. For a conversation that has ended, nothing happens."""
        self._loop.call_soon_threadsafe(self._cancel, key)

    def finished(self, wait_s: float = 0.0) -> list[tuple[int, Finished]]:
        """Return the conversations that ended since the last call; wait at most `wait_s` seconds for the first.

        Raises:
            RuntimeError: the agents' thread has died.
        """
        ended: list[tuple[int, Finished]] = []
        try:
            ended.append(self._finished.get(timeout=wait_s) if wait_s > 0 else self._finished.get_nowait())
            while True:
                ended.append(self._finished.get_nowait())
        except queue.Empty:
            pass
        if not ended:
            self._require_alive()
        return ended

    def close(self) -> None:
        """Kill all programs and stop the server."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(_CLOSE_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, started: Future[AgentServer]) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))

    async def _serve(self, started: Future[AgentServer]) -> None:
        try:
            server = AgentServer(self._sampler, model=MODEL, temperature=self._temperature)
        except OSError as problem:
            started.set_exception(problem)
            return
        self._slots = asyncio.Semaphore(self._programs)
        started.set_result(server)
        await server.serve()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._server.stop()

    def _require_alive(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the thread of the agents has died; the run's log has its error")

    def _begin(self, key: int, texts: tuple[str, str], seed: int) -> None:
        assert key not in self._tasks, f"conversation {key} is under way"
        self._tasks[key] = self._loop.create_task(self._play(key, texts, seed))

    def _cancel(self, key: int) -> None:
        if task := self._tasks.get(key):
            task.cancel()

    async def _play(self, key: int, texts: tuple[str, str], seed: int) -> None:
        try:
            async with self._slots:
                result = await self._played(key, texts, seed)
            self._finished.put((key, result))
        finally:
            del self._tasks[key]

    async def _played(self, key: int, texts: tuple[str, str], seed: int) -> Finished:
        record = AgentRecord(self._renderer, self._limits, seed)
        secret, conversation = self._server.open(key, record)
        folder = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=self._folder))
        began = time.monotonic()
        try:
            row, messages = folder / "row.json", folder / "messages.json"
            row.write_text(texts[0], encoding="utf-8")
            messages.write_text(texts[1], encoding="utf-8")
            environment = self._program.environment(
                {
                    "OPENAI_BASE_URL": self.base_url,
                    "OPENAI_API_KEY": secret,
                    "OPENAI_MODEL": MODEL,
                    "GRPO_ROW": str(row),
                    "GRPO_MESSAGES": str(messages),
                    "TMPDIR": str(folder),
                }
            )
            ended = await run_program(self._program.command, environment, row, self._limits.deadline_s)
        except OSError as problem:
            return WorldFailed("error", f"the agent's program cannot be started: {problem}")
        finally:
            self._server.end(secret)
            shutil.rmtree(folder, ignore_errors=True)
        return self._judged(key, conversation, ended, time.monotonic() - began)

    def _judged(self, key: int, conversation: OpenConversation, run: ProgramRun, lasted_s: float) -> Finished:
        """Return the end of a conversation whose program has ended."""
        record = conversation.record
        status, reason, printed = "error", conversation.failure, Printed()
        if not reason and run.code == 0:
            try:
                printed = Printed.of(run.output)
            except BadOutput as problem:
                reason = str(problem)
        elif not reason and record.ended is None:
            status, reason = self._why(run, lasted_s)
        if reason:
            self._write_log(key, reason, run.errors)
            reason = visible(reason)
            played = record.result(ConversationEnd.FAILED, reason=reason, timed_out=status == "timeout")
            return played or WorldFailed(status, reason)
        reward = WorldReward(printed.reward, printed.parts)
        played = record.result(record.ended or ConversationEnd.OVER, reward=reward, answer=printed.answer)
        if played is None:
            reason = f"the agent's program ended with exit code {run.code}, and the policy answered no call of it"
            self._write_log(key, reason, run.errors)
        return played or WorldFailed("error", reason)

    def _why(self, run: ProgramRun, lasted_s: float) -> tuple[str, str]:
        """Return the status and the reason of a program that did not end by itself with exit code 0."""
        if run.code is None:
            limit = f"{self._limits.deadline_s:g} s (conversation.deadline_s)"
            return "timeout", f"the agent's program had not ended after {limit}, and was killed"
        how = f"exit code {run.code}" if run.code > 0 else f"signal {-run.code}"
        last = next((line for line in reversed(run.errors.splitlines()) if line.strip()), "")
        quoted = f": {one_line(last)}" if last else ""
        return "error", f"the agent's program ended with {how} after {lasted_s:.1f} s{quoted}; {self._log} has more"

    def _write_log(self, key: int, reason: str, errors: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"conversation {key}: {visible(reason)}\n{visible(errors[-_LOGGED:])}\n")
