"""A game with an environment: one instance of a user's class, from `reset` to `close`."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from grpo.environments.classes import EnvironmentClass, ResetStyle
from grpo.environments.contract import Opening
from grpo.environments.deadline import Overdue, within
from grpo.environments.opening import opening_of
from grpo.messages import WorldReward

# Seconds that an async function has after its cancellation.
_CANCEL_S = 0.5
_STEP_FORMS = (
    "return text, (text, reward), (text, reward, over), or a dictionary with some of the keys 'text', 'reward', 'over'"
)


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """What `step` returned.

    Attributes:
        text: answer to the policy; None if there is no answer.
        reward: reward of the turn; None without such a reward.
        over: whether `step` said that the game is over.
    """

    text: str | None
    reward: float | None = None
    over: bool = False


class Loop:
    """Calls functions that may be async. All calls share an event loop, so that a client's connections live on."""

    def __init__(self) -> None:
        """Start without an event loop; the first async call makes it."""
        self._runner: asyncio.Runner | None = None

    def call(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        """Call a function, and return its result; if the result is awaitable, wait for it."""
        value = function(*arguments, **named)
        return self._wait(_awaited(value, None)) if inspect.isawaitable(value) else value

    def call_within(self, seconds: float, function: Callable[..., Any], /, **named: Any) -> Any:
        """Call a function as `call` does, for at most this time, in seconds.

        Raises:
            Overdue: the call took longer.
        """
        start = time.monotonic()
        with within(seconds):
            value = function(**named)
        if not inspect.isawaitable(value):
            return value
        rest = seconds - (time.monotonic() - start)
        # An async function is cancelled at its deadline. If it blocks the event loop, the alarm interrupts it.
        with within(max(rest, 0.0) + _CANCEL_S):
            return self._wait(_awaited(value, rest))

    def _wait(self, value: Coroutine[Any, Any, Any]) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(value)

    def close(self) -> None:
        """Close the event loop."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


class Playing:
    """One game.

    Args:
        environment: class of the environment.
        loop: calls async methods.

    Raises:
        Exception: any exception of the class.
    """

    def __init__(self, environment: EnvironmentClass, loop: Loop) -> None:
        self._class, self._loop = environment, loop
        self._name = environment.name
        self._instance = environment.build(**environment.options)
        self._turns: list[float | None] = []

    def method(self, name: str) -> Callable[..., Any]:
        """Return a method of the instance, for a tool call."""
        method: Callable[..., Any] = getattr(self._instance, name)
        return method

    def open(self, row: Mapping[str, Any]) -> Opening:
        """Reset the environment for a row.

        Raises:
            ValueError: the row lacks a column that `reset` needs, or `reset` returned something else than messages.
            Exception: any exception of `reset`.
        """
        style, separator = self._class.style, "\n\n"
        if style is ResetStyle.ROW:
            value = self._loop.call(self._instance.reset, dict(row))
        elif style is ResetStyle.COLUMNS:
            # TRL joins the texts without a separator.
            separator = ""
            value = self._loop.call(self._instance.reset, **row)
        else:
            missing = [name for name, required in self._class.columns.items() if required and name not in row]
            if missing:
                raise ValueError(
                    f"reset of {self._name} takes {missing[0]!r}, but the row has only {', '.join(row)}; name its "
                    "parameters as columns of the data, or write `def reset(self, row)`"
                )
            value = self._loop.call(
                self._instance.reset, **{name: row[name] for name in self._class.columns if name in row}
            )
        return opening_of(value, self._name, separator)

    def step(self, message: str) -> StepAnswer:
        """Let the environment answer a turn.

        Raises:
            ValueError: `step` returned something else than an answer.
            Exception: any exception of `step`.
        """
        return self._read_step(self._loop.call(self._instance.step, message))

    def turn_ended(self, reward: float | None) -> None:
        """Note the reward of a turn; None if the environment did not reward the turn."""
        self._turns.append(reward)

    def over(self) -> bool:
        """Return whether the environment says that the game is over, by `over` or `done`."""
        values = [getattr(self._instance, name, False) for name in ("over", "done")]
        return any(bool(self._loop.call(value) if callable(value) else value) for value in values)

    def reward(self) -> WorldReward:
        """Return the reward of the game: by the method `reward`, TRL's `get_reward`, or the attribute `reward`.

        If there is none of them, or if it is None, the reward is the sum of the rewards of turns.

        Raises:
            ValueError: the reward is no finite number, and no dictionary of such numbers.
            Exception: any exception of the method.
        """
        sources = [getattr(self._instance, name, None) for name in ("reward", "get_reward")]
        # A class of TRL may have both: the method is the reward, and an attribute is its memory.
        method = next(filter(callable, sources), None)
        value = sources[0] if method is None else self._loop.call(method)
        turns = tuple(each or 0.0 for each in self._turns) if any(each is not None for each in self._turns) else ()
        if value is None:
            return WorldReward(math.fsum(turns) if turns else None, {}, turns)
        if isinstance(value, Mapping):
            parts = {str(name): self._number(part, f"part {name!r} of the reward") for name, part in value.items()}
            if not parts:
                raise ValueError(f"{self._name}: the reward is an empty dictionary; return a number, or None")
            total = parts.pop("reward") if "reward" in parts else math.fsum(parts.values())
            return WorldReward(total, parts, turns)
        return WorldReward(self._number(value, "reward"), {}, turns)

    def close(self) -> None:
        """Close the environment, if it has a method `close`."""
        close = getattr(self._instance, "close", None)
        if callable(close):
            self._loop.call(close)

    def _read_step(self, value: Any) -> StepAnswer:
        if isinstance(value, Mapping):
            unknown = [key for key in value if key not in ("text", "reward", "over", "done")]
            if unknown:
                raise ValueError(f"step of {self._name} returned the key {unknown[0]!r}; {_STEP_FORMS}")
            parts = (value.get("text"), value.get("reward"), value.get("over", value.get("done", False)))
        elif isinstance(value, tuple) and 2 <= len(value) <= 3:
            parts = (value[0], value[1], value[2] if len(value) == 3 else False)
        else:
            parts = (value, None, False)
        text, reward, over = parts
        if text is not None and not isinstance(text, str):
            raise ValueError(f"step of {self._name} returned {type(text).__name__} as text; {_STEP_FORMS}")
        return StepAnswer(text, None if reward is None else self._number(reward, "reward of a turn"), bool(over))

    def _number(self, value: Any, what: str) -> float:
        # A scalar of numpy or torch has `item`.
        number = value.item() if not isinstance(value, numbers.Real) and hasattr(value, "item") else value
        if not isinstance(number, numbers.Real) or not math.isfinite(number):
            shown = f"{value!r}" if isinstance(value, float) else type(value).__name__
            raise ValueError(f"{self._name}: the {what} is {shown}; expected a finite number")
        return float(number)


async def _awaited(value: Awaitable[Any], seconds: float | None) -> Any:
    try:
        async with asyncio.timeout(seconds) as deadline:
            return await value
    except TimeoutError:
        if deadline.expired():
            raise Overdue from None
        raise
