"""Parts that both displays of a job share: the figures of a step, the pace, and time as text."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from grpo.terminal import literal

# The pace of the last steps predicts the remaining time better than the mean of all steps, because completions grow in
# training.
_PACE_WINDOW = 20
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Field:
    """A figure of the display.

    Attributes:
        label: word before the figure in the live panel.
        short: head of the figure's column in a log; at most `width` characters.
        metric: name of the figure's metric.
        decimals: number of digits after the point.
        width: width in a log line, in characters.
        unit: text after the figure in the live panel.
        sticky: whether the display keeps the last value if a step has no value. Most steps have
            no result of an evaluation, so these results are sticky.
    """

    label: str
    short: str
    metric: str
    decimals: int
    width: int
    unit: str = ""
    sticky: bool = False

    def format(self, value: float | None) -> str:
        """The figure as text; if `value` is None, the text is empty."""
        if value is None:
            return ""
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.{self.decimals}f}"


# The widths of the fields, the step (9 characters) and the remaining time (8 characters) add up to 80.
GRPO_FIELDS = (
    Field("reward", "reward", "reward/mean", 3, 7),
    Field("accuracy", "acc", "rollout/accuracy", 3, 6),
    Field("held-out", "eval", "eval/accuracy", 3, 6, sticky=True),
    Field("length", "length", "rollout/completion_tokens_mean", 1, 8, " tokens"),
    Field("speed", "tok/s", "throughput/tokens_per_s", 0, 8, " tokens/s"),
    Field("generate", "gen s", "time/generate_s", 2, 7, " s"),
    Field("verify", "ver s", "time/verify_s", 2, 6, " s"),
    Field("learn", "learn s", "time/learn_s", 2, 8, " s"),
    Field("sync", "sync s", "time/sync_s", 2, 7, " s"),
)
SFT_FIELDS = (
    Field("loss", "loss", "learner/loss", 4, 10),
    Field("gradient norm", "grad", "learner/gradient_norm", 3, 10),
    Field("learning rate", "lr", "learner/learning_rate", 6, 11),
    Field("speed", "tok/s", "throughput/tokens_per_s", 0, 10, " tokens/s"),
)

DPO_FIELDS = (
    Field("loss", "loss", "learner/loss", 4, 9),
    Field("accuracy", "acc", "rewards/accuracies", 3, 7),
    Field("margin", "margin", "rewards/margins", 3, 9),
    Field("chosen", "chosen", "rewards/chosen", 3, 9),
    Field("held-out", "eval", "eval/rewards/accuracies", 3, 7, sticky=True),
    Field("gradient norm", "grad", "learner/gradient_norm", 3, 9),
    Field("speed", "tok/s", "throughput/tokens_per_s", 0, 9, " tokens/s"),
)
# The figures of a fine-tuning, by the name of its job.
FINE_TUNING_FIELDS = {
    "sft": SFT_FIELDS,
    "dpo": DPO_FIELDS,
    "reward": tuple(field for field in DPO_FIELDS if field.label != "chosen"),
}


def shown_literally(renderable: RenderableType) -> RenderableType:
    """Return a string as a text that rich prints without interpreting markup; return other objects unchanged."""
    return literal(renderable) if isinstance(renderable, str) else renderable


class StepPace:
    """The pace of the steps, and an estimate of the remaining time."""

    def __init__(self, total_steps: int | None) -> None:
        """Prepare for the first step."""
        self._total = total_steps
        self._ticks: deque[tuple[int, float]] = deque(maxlen=_PACE_WINDOW + 1)

    def tick(self, step: int) -> None:
        """Record that a step has just finished."""
        self._ticks.append((step, time.monotonic()))

    def position(self) -> str:
        """The number of the step and, if it is known, the number of all steps."""
        step = self._ticks[-1][0] if self._ticks else 0
        return f"{step}/{self._total}" if self._total else str(step)

    def seconds_per_step(self) -> float | None:
        """The mean seconds per step; None before two steps are done."""
        if len(self._ticks) < 2 or self._ticks[-1][0] <= self._ticks[0][0]:
            return None
        (first, begin), (last, end) = self._ticks[0], self._ticks[-1]
        return (end - begin) / (last - first)

    def left(self) -> str:
        """The time until the last step; empty if it is unknown."""
        pace = self.seconds_per_step()
        if pace is None or not self._total:
            return ""
        return clock(pace * max(0, self._total - self._ticks[-1][0]))


def sparkline(values: Sequence[float]) -> str:
    """The values as a row of block characters, a higher block for a higher value. Without values, the row is empty."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return _SPARKS[0] * len(values)
    return "".join(_SPARKS[round((value - low) / (high - low) * (len(_SPARKS) - 1))] for value in values)


def clock(seconds: float) -> str:
    """A time as minutes and seconds; from one hour on, as hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
