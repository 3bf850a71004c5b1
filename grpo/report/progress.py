"""The terminal display of a running job: its phase, and the figures of the last step.

    progress = open_progress("GRPO", total_steps=200)
    with progress.phase(Phase.START, "starting 2 generators"):
        ...
    progress.step(1, {"reward/mean": 0.31, "time/step_s": 1.9})
    progress.close()

On a terminal, the display is a live panel. Anywhere else (a CI log, a file), the display prints one line per step,
at most 80 columns wide. Both displays use the metric names of `docs/metrics.md`. A missing metric stays blank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.text import Text

from grpo.report.display import GRPO_FIELDS, Field, StepPace, shown_literally
from grpo.report.live_progress import LiveProgress
from grpo.terminal import Terminal
from grpo.types import Phase
from grpo.visible import visible

_HEADER_EVERY = 20
# If steps are faster than this, some of their lines are skipped, so that the log stays readable. Evaluations and the
# last step always get a line.
_SECONDS_BETWEEN_LINES = 1.0


class Progress(Protocol):
    """The terminal display of a job."""

    def phase(self, phase: Phase, text: str) -> AbstractContextManager[None]:
        """Show `text` and the time since the block began, until the block ends."""
        ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the figures of a finished step."""
        ...

    def show(self, renderable: RenderableType) -> None:
        """Print something that stays above the display. A string is printed without markup."""
        ...

    def close(self) -> None:
        """Leave the last figures on the screen and restore the terminal. Safe to call twice."""
        ...


def open_progress(
    title: str,
    *,
    total_steps: int | None = None,
    fields: Sequence[Field] = GRPO_FIELDS,
    console: Console | None = None,
) -> Progress:
    """Open a live panel if the console is a terminal; otherwise print plain lines."""
    console = console or Terminal()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(title, total_steps, fields, console)
    return PlainProgress(title, total_steps, fields, console)


class PlainProgress:
    """A line per step, and a line at the begin and the end of each phase."""

    def __init__(self, title: str, total_steps: int | None, fields: Sequence[Field], console: Console) -> None:
        self._title, self._fields, self._console = title, tuple(fields), console
        self._pace = StepPace(total_steps)
        self._total_steps = total_steps
        self._lines = 0
        self._printed_at = -math.inf

    @contextmanager
    def phase(self, phase: Phase, text: str) -> Generator[None]:
        started = time.monotonic()
        self._line(f"{self._title}: {text} ...")
        try:
            yield
        except BaseException as problem:
            seconds = time.monotonic() - started
            self._line(f"{self._title}: {text}: stopped after {seconds:.1f} s ({type(problem).__name__})")
            raise
        self._line(f"{self._title}: {text}: {time.monotonic() - started:.1f} s")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._pace.tick(step)
        now = time.monotonic()
        must_show = step == self._total_steps or any(field.sticky and field.metric in metrics for field in self._fields)
        if now - self._printed_at < _SECONDS_BETWEEN_LINES and not must_show:
            return
        self._printed_at = now
        if self._lines % _HEADER_EVERY == 0:
            self._line("     step" + "".join(f"{field.short:>{field.width}}" for field in self._fields) + "    left")
        self._lines += 1
        figures = "".join(f"{field.format(metrics.get(field.metric)):>{field.width}}" for field in self._fields)
        self._line(f"{self._pace.position():>9}{figures}{self._pace.left():>8}")

    def show(self, renderable: RenderableType) -> None:
        # In a log, a message stays a single line, even if it is long.
        self._console.print(shown_literally(renderable), soft_wrap=isinstance(renderable, str | Text))
        self._console.file.flush()

    def close(self) -> None:
        return None

    def _line(self, text: str) -> None:
        self._console.print(visible(text.rstrip()), soft_wrap=True, markup=False, emoji=False, highlight=False)
        self._console.file.flush()
