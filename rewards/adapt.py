"""Calls functions that users wrote, and turns every value that they return into a valid Verdict."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rewards.calling import Batch
from rewards.raised import describe
from rewards.signatures import read_signature
from rewards.verdict import Status, Verdict, as_number, error, within
from rewards.verifier import TOKENS_COLUMN

# A score outside these bounds is treated as an error of the verifier; the option `bounds` changes them.
DEFAULT_BOUNDS = (-100.0, 100.0)
# Words of such an error.
OUTSIDE = "outside the bounds"
# The least returned number that makes a verdict `correct`; the option `pass_mark` changes it.
PASS_MARK = 1.0
# Tolerance for rounding: a sum of weights such as 0.7 + 0.2 + 0.1 must reach the pass mark 1, also in single precision.
_MARK_TOLERANCE = 1e-6


class Adapted:
    """A Verifier that calls a user's function.

    Args:
        function: user's function, sync or async. Its parameters are `(completion, reference[, prompt])`, or
            `(completions, reference[, prompt])` for a whole group, or the parameters of another trainer's reward
            functions (`rewards.signatures`). It returns a Verdict, a number or a bool; for a whole group it returns a
            list of these.
        bounds: least and greatest score that is accepted.
        pass_mark: least number whose status is `correct`.
        conversational: whether a function with TRL's signature gets prompts and completions as lists of messages.

    If the function raises an exception, or returns a value that is not a Verdict, a bool or a finite number within
    `bounds`, the verdict has the status `error` and no score. True becomes `correct`, False becomes `wrong`. A number
    becomes `correct` if it is at least `pass_mark`, `wrong` if it is 0 or less, and `scored` otherwise.

    Raises:
        ValueError: invalid bounds or pass mark, or a signature that does not say how to call the function.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        bounds: tuple[float, float] = DEFAULT_BOUNDS,
        pass_mark: float = PASS_MARK,
        conversational: bool = False,
    ) -> None:
        low, high = bounds
        if not (_is_real(low) and _is_real(high) and low < high):
            raise ValueError(f"bounds must be two numbers, [least, greatest] with least < greatest, got {bounds!r}")
        if not _is_real(pass_mark) or not math.isfinite(pass_mark):
            raise ValueError(f"pass_mark must be a finite number, the least score that is correct; got {pass_mark!r}")
        self.function, self.bounds = function, (float(low), float(high))
        self.pass_mark = float(pass_mark)
        self._signature = read_signature(function, conversational)
        self._home = _file_of(function)

    @property
    def judges_groups(self) -> bool:
        """True when the function takes all completions of a prompt at once."""
        return self._signature.group

    @property
    def is_async(self) -> bool:
        """True when several calls of the function can overlap in one thread."""
        return inspect.iscoroutinefunction(_innermost(self.function))

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the function's verdict, or an `error` that says which exception was raised and where."""
        if count := self._signature.positional:
            # The fast path: all built-in verifiers can be called directly.
            try:
                value = self.function(*(completion, reference, prompt)[:count])
                if inspect.isawaitable(value):
                    value = _wait_for(value)
                return within(as_verdict(value, self.bounds, self.pass_mark), completion)
            except (Exception, SystemExit) as problem:
                return error(describe(problem, self._home))
        return self.judge(self.alone(completion, reference, prompt))[0]

    def alone(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Batch:
        """Return a batch that contains only this completion. A group verifier can judge such a batch too."""
        tokens = {TOKENS_COLUMN: [prompt[TOKENS_COLUMN]]} if self.judges_groups and TOKENS_COLUMN in prompt else {}
        return Batch((completion,), reference, prompt, tokens)

    def judge(self, batch: Batch) -> list[Verdict]:
        """Return a verdict for each completion. If a group verifier fails, all verdicts are `error`."""
        try:
            value = self._call(batch)
            if inspect.isawaitable(value):
                value = _wait_for(value)
            return self._verdicts(value, batch.completions)
        except (Exception, SystemExit) as problem:
            return [error(describe(problem, self._home))] * len(batch.completions)

    async def judge_async(self, batch: Batch) -> list[Verdict]:
        """Like `judge`, but run in the current event loop, where other calls can run at the same time."""
        try:
            value = self._call(batch)
            if inspect.isawaitable(value):
                value = await value
            return self._verdicts(value, batch.completions)
        except (Exception, SystemExit) as problem:
            return [error(describe(problem, self._home))] * len(batch.completions)

    @property
    def cache_hits(self) -> int:
        """Number of verdicts that the function took from its cache; 0 when it has no cache."""
        return int(getattr(self.function, "cache_hits", 0))

    def _call(self, batch: Batch) -> Any:
        arguments, named = self._signature.arguments(batch)
        return self.function(*arguments, **named)

    def _verdicts(self, value: Any, completions: Sequence[str]) -> list[Verdict]:
        value, count = self._signature.returns(value), len(completions)
        if not self.judges_groups:
            return [within(as_verdict(value, self.bounds, self.pass_mark), completions[0])]
        if len(getattr(value, "shape", ())) == 1:
            value = value.tolist()
        if not isinstance(value, (list, tuple)):
            shown = f"{type(value).__name__} {str(value)[:80]!r}"
            return [
                error(f"returned {shown} for a group; expected a list of {count} verdicts, numbers or bools")
            ] * count
        if len(value) != count:
            return [error(f"returned {len(value)} verdicts for a group of {count} completions")] * count
        verdicts = [as_verdict(element, self.bounds, self.pass_mark) for element in value]
        return [within(verdict, text) for verdict, text in zip(verdicts, completions, strict=True)]


def prepare(verifier: object) -> None:
    """Call the method `prepare()` of a verifier, or of the object that it adapts, if there is such a method.

    The pool calls this function once, before it forks its workers. So the workers share the resources that the method
    opens. The method must leave no thread running.
    """
    function = verifier.function if isinstance(verifier, Adapted) else verifier
    method = getattr(function, "prepare", None)
    if callable(method):
        method()


def as_verdict(value: object, bounds: tuple[float, float] = DEFAULT_BOUNDS, pass_mark: float = PASS_MARK) -> Verdict:
    """Turn the value that a verifier returned into a Verdict. A value that cannot be a score gives an `error`."""
    low, high = bounds
    if isinstance(value, Verdict):
        if value.score is not None and not low <= value.score <= high:
            return error(f"returned a score of {value.score!r}, {OUTSIDE} {low:g} to {high:g}")
        return value
    try:
        number = as_number(value)
    except TypeError as problem:
        return error(f"returned {problem}; expected a Verdict, a number or a bool")
    except OverflowError:
        return error(f"returned {value!r:.40}, {OUTSIDE} {low:g} to {high:g}")
    if isinstance(number, bool):
        return Verdict(float(number), Status.CORRECT if number else Status.WRONG)
    if not math.isfinite(number):
        return error(f"returned {number!r}; expected a finite number")
    if not low <= number <= high:
        return error(f"returned {value!r:.40}, {OUTSIDE} {low:g} to {high:g}")
    if number >= pass_mark - _MARK_TOLERANCE:
        return Verdict(number, Status.CORRECT)
    return Verdict(number, Status.SCORED if number > 0 else Status.WRONG)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function without its bound options. For an object, return the method that runs when it is called."""
    inner = function.func if isinstance(function, functools.partial) else function
    return inner if inspect.isroutine(inner) else type(inner).__call__


def _file_of(function: Callable[..., Any]) -> str | None:
    code = getattr(_innermost(function), "__code__", None)
    return code.co_filename if code is not None else None


def _wait_for(value: Awaitable[Any]) -> Any:
    async def waited() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(waited())
    # A loop is already running in this thread, so the coroutine runs in a loop of another thread.
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
