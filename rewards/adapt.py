"""The one boundary between a verifier of anybody's making and a trustworthy Verdict."""

from __future__ import annotations

import asyncio
import inspect
import math
import resource
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rewards.verdict import Status, Verdict, error

# Scores outside are taken for a mistake in the verifier; the spec's `bounds` option changes them.
DEFAULT_BOUNDS = (-100.0, 100.0)


class Adapted:
    """A user's function made into a Verifier.

    Args:
        function: `(completion, reference)` or `(completion, reference, prompt)`, sync or async, returning a
            Verdict, a number or a bool.
        bounds: the least and the greatest score that is believed.

    Whatever it raises, and any value that is not a Verdict, a bool or a finite number within `bounds`, becomes a
    verdict of status `error`: never a score. True is `correct`, False `wrong`; a number is `correct` where it is
    positive.
    """

    def __init__(self, function: Callable[..., Any], bounds: tuple[float, float] = DEFAULT_BOUNDS) -> None:
        low, high = bounds
        if not low < high:
            raise ValueError(f"bounds must be (least, greatest) with least < greatest, got {bounds!r}")
        self.function, self.bounds = function, (float(low), float(high))
        self._takes_prompt = takes_prompt(function)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The function's verdict, or `error` with the last line of its traceback."""
        arguments = (completion, reference, prompt) if self._takes_prompt else (completion, reference)
        try:
            value = self.function(*arguments)
            if inspect.isawaitable(value):
                value = _wait_for(value)
        except (Exception, SystemExit) as problem:
            return error(describe(problem))
        return as_verdict(value, self.bounds)

    @property
    def cache_hits(self) -> int:
        """How many verdicts the function took from a cache of its own (0 where it keeps none)."""
        return int(getattr(self.function, "cache_hits", 0))


def prepare(verifier: object) -> None:
    """Call the `prepare()` of a verifier, or of the object that it adapts, where there is one.

    The pool does so once, in the process that its workers are forked from: what is opened there is theirs as well.
    It must leave no thread running.
    """
    function = verifier.function if isinstance(verifier, Adapted) else verifier
    method = getattr(function, "prepare", None)
    if callable(method):
        method()


def takes_prompt(function: Callable[..., Any]) -> bool:
    """True where a third positional argument can be given.

    Raises:
        ValueError: the function takes neither two nor three positional arguments.
    """
    signature = inspect.signature(function)
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count == 3
    raise ValueError(
        f"{function!r} must take (completion, reference) or (completion, reference, prompt); "
        f"its signature is {signature}"
    )


def as_verdict(value: object, bounds: tuple[float, float] = DEFAULT_BOUNDS) -> Verdict:
    """Turn what a verifier returned into a Verdict; `error` where it is nothing that can be believed."""
    low, high = bounds
    if isinstance(value, Verdict):
        if value.score is not None and not low <= value.score <= high:
            return error(f"returned a score of {value.score!r}, outside the bounds {low:g} to {high:g}")
        return value
    if isinstance(value, bool):
        return Verdict(float(value), Status.CORRECT if value else Status.WRONG)
    if not isinstance(value, (int, float)):
        return error(f"returned {type(value).__name__} {str(value)[:80]!r}; expected a Verdict, a number or a bool")
    if isinstance(value, float) and not math.isfinite(value):
        return error(f"returned {value!r}; expected a finite number")
    if not low <= value <= high:
        return error(f"returned {value!r:.40}, outside the bounds {low:g} to {high:g}")
    return Verdict(float(value), Status.CORRECT if value > 0 else Status.WRONG)


def describe(problem: BaseException) -> str:
    """The last line of the traceback, and where it was raised; of memory that ran out, what there was of it."""
    last = traceback.format_exception_only(problem)[-1].strip()
    frames = traceback.extract_tb(problem.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if isinstance(problem, MemoryError) and limit != resource.RLIM_INFINITY:
        where += f": a worker of the verifiers has {limit >> 20} MiB of address space, as memory_mib says"
    return f"{last[:300]}{where}"


def _wait_for(value: Awaitable[Any]) -> Any:
    async def waited() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(waited())
    # A loop is already running in this thread: give the coroutine a loop of its own elsewhere.
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(waited()))
        except (Exception, SystemExit) as problem:
            failure.append(problem)

    thread = threading.Thread(target=run, name="async-verifier")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
