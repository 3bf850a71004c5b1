"""Verifiers of groups, and async ones, for the pool's tests."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from rewards.stage import enter

LOOPS: set[asyncio.AbstractEventLoop] = set()


def rank_by_length(completions, reference, prompt):
    """The longer, the better: a number of places behind, from 0 to 1. Says what it was handed through the score."""
    assert prompt["completion_tokens"] == [len(text) for text in completions] or len(completions) == 1
    lengths = sorted(map(len, completions))
    return [lengths.index(len(text)) / max(1, len(completions) - 1) for text in completions]


async def compare(completions, reference):
    await asyncio.sleep(0.05)
    return [text == max(completions) for text in completions]


def group_trouble(completions, reference):
    """Does what the first completion says."""
    what = completions[0]
    if what == "raise":
        raise LookupError("no such group")
    if what == "hang":
        enter("comparing")
        time.sleep(1000)
    if what == "short":
        return [True]
    if what == "die once":
        with Path(reference).open("a") as log:
            log.write("call\n")
        if Path(reference).read_text().count("call") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return [True] * len(completions)


async def wait(completion, reference):
    await asyncio.sleep(float(completion))
    return True


async def where(completion, reference):
    """Whether the event loop is the one of all earlier calls of this process."""
    LOOPS.add(asyncio.get_running_loop())
    return len(LOOPS) == 1


async def async_trouble(completion, reference):
    """Does what the completion says; a number is a wait of so many seconds."""
    if completion == "forever":
        enter("asking the judge")
        await asyncio.sleep(1000)
    if completion == "child":
        enter("asking by a task")
        await asyncio.gather(asyncio.sleep(1000))
    if completion == "block":
        await asyncio.sleep(0.05)
        enter("in the way")
        time.sleep(1000)
    if completion == "deaf":
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue
    if completion == "raise":
        raise LookupError("no judge")
    if completion == "cancel":
        raise asyncio.CancelledError
    if completion == "exit":
        raise SystemExit(3)
    if completion == "eat":
        return len(bytearray(4 << 30)) > 0
    if completion == "die":
        await asyncio.sleep(0.05)
        os._exit(1)
    with Path(reference).open("a") as log:
        log.write(f"{completion}\n")
    await asyncio.sleep(float(completion))
    return True
