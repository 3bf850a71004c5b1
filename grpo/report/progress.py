"""What a person sees in the terminal while a job runs: the phase it is in, and the figures of the last step.

    progress = open_progress("GRPO", total_steps=200)
    with progress.phase(Phase.START, "starting 2 generators"):
        ...
    progress.step(1, {"reward/mean": 0.31, "time/step_s": 1.9})
    progress.close()

On a terminal this is a live panel; anywhere else (a CI log, a file) it is one line per step, at most 80 columns
wide. Both take the metric names of `docs/metrics.md`; a metric that is missing is left blank.
"""

from __future__ import annotations

import atexit
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from grpo.terminal import Terminal, literal
from grpo.types import Phase
from grpo.visible import visible

# Four frames a second: smooth enough for a spinner, and nothing to feel on a machine whose cores generate tokens.
_FRAMES_PER_SECOND = 4
# The pace of the last steps foretells the end better than the mean of all: completions grow while a policy learns.
_PACE_WINDOW = 20
_HEADER_EVERY = 20
# A log wants no more lines than a person reads: faster steps are passed over, but never an evaluation or the last.
_SECONDS_BETWEEN_LINES = 1.0
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Field:
    """One figure of the display.

    Attributes:
        label: the word before it in the live panel.
        short: the head of its column in a log, at most `width` wide.
        metric: its name in the metrics.
        decimals: digits after the point.
        width: columns in a log line.
        unit: follows the figure in the live panel.
        sticky: keep showing the last value where a step has none (evaluations).
    """

    label: str
    short: str
    metric: str
    decimals: int
    width: int
    unit: str = ""
    sticky: bool = False

    def format(self, value: float | None) -> str:
        """The figure as text; empty where there is none."""
        if value is None:
            return ""
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.{self.decimals}f}"


# The widths add up to 80 with the step (9) and the remaining time (8) beside them.
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


class Progress(Protocol):
    """The terminal display of a job."""

    def phase(self, phase: Phase, text: str) -> AbstractContextManager[None]:
        """Show that the job is busy with what `text` says, and for how long, until the block ends."""
        ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the figures of a finished step."""
        ...

    def show(self, renderable: RenderableType) -> None:
        """Print something that stays above the display; a string is no markup."""
        ...

    def close(self) -> None:
        """Leave the last figures on the screen and give the terminal back. Safe to call twice."""
        ...


def open_progress(
    title: str,
    *,
    total_steps: int | None = None,
    fields: Sequence[Field] = GRPO_FIELDS,
    console: Console | None = None,
) -> Progress:
    """A live panel where the console is a terminal, plain lines where it is not."""
    console = console or Terminal()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(title, total_steps, fields, console)
    return PlainProgress(title, total_steps, fields, console)


class PlainProgress:
    """One line per step, and one at the begin and the end of each phase."""

    def __init__(self, title: str, total_steps: int | None, fields: Sequence[Field], console: Console) -> None:
        self._title, self._fields, self._console = title, tuple(fields), console
        self._pace = _Pace(total_steps)
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
        # In a log one message is one line, however long.
        self._console.print(_literal(renderable), soft_wrap=isinstance(renderable, str | Text))
        self._console.file.flush()

    def close(self) -> None:
        return None

    def _line(self, text: str) -> None:
        self._console.print(visible(text.rstrip()), soft_wrap=True, markup=False, emoji=False, highlight=False)
        self._console.file.flush()


class LiveProgress:
    """A panel at the foot of the terminal; what others print scrolls by above it."""

    def __init__(self, title: str, total_steps: int | None, fields: Sequence[Field], console: Console) -> None:
        self._title, self._fields, self._console = title, tuple(fields), console
        self._pace = _Pace(total_steps)
        self._total_steps = total_steps
        self._figures: dict[str, tuple[int, float]] = {}
        self._newest_step: int | None = None
        self._trend: deque[float] = deque(maxlen=24)
        self._phases: list[tuple[Spinner, float]] = []
        self._held_streams: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=_FRAMES_PER_SECOND,
            redirect_stdout=True,
            redirect_stderr=True,
            vertical_overflow="crop",
        )
        self._open = True
        streams_before = (sys.stdout, sys.stderr)
        self._live.start()
        self._hold_log_handlers(streams_before)
        # The cursor is hidden while the panel is up: whichever way the process ends, give it back.
        atexit.register(self.close)

    @contextmanager
    def phase(self, phase: Phase, text: str) -> Generator[None]:
        started = time.monotonic()
        entry = (Spinner("dots", text=literal(text)), started)
        self._phases.append(entry)
        outcome = "stopped after "
        try:
            yield
            outcome = ""
        finally:
            self._phases.remove(entry)
            # Of the phases between steps (evaluations, checkpoints) only a failed one is worth a line for good.
            if self._newest_step is None or outcome:
                self._leave_line(text, outcome, time.monotonic() - started)

    def _leave_line(self, text: str, outcome: str, seconds: float) -> None:
        mark = Text("✗ ", "red") if outcome else Text("✓ ", "green")
        self.show(mark + literal(f"{text}: {outcome}{seconds:.1f} s", "default"))

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._pace.tick(step)
        self._newest_step = step
        for field in self._fields:
            if field.metric in metrics:
                self._figures[field.metric] = (step, metrics[field.metric])
        trend = metrics.get(self._fields[0].metric)
        if trend is not None and math.isfinite(trend):
            self._trend.append(trend)

    def show(self, renderable: RenderableType) -> None:
        self._console.print(_literal(renderable))

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        self._live.stop()
        for handler, stream in self._held_streams:
            handler.setStream(stream)
        self._held_streams.clear()

    def _hold_log_handlers(self, streams_before: tuple[TextIO, TextIO]) -> None:
        # rich replaces sys.stdout and sys.stderr, but a log handler made earlier holds the real stream and would
        # write across the panel: lead it to the replacement until the panel is closed.
        replacements = dict(zip(map(id, streams_before), (sys.stdout, sys.stderr), strict=True))
        loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
        for logger in loggers:
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler) and id(handler.stream) in replacements:
                    self._held_streams.append((handler, handler.stream))
                    handler.setStream(replacements[id(handler.stream)])

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._newest_step is not None:
            parts += [self._render_head(), self._render_figures()]
        # Copied: the refresh thread draws while the job's thread opens and closes phases.
        for spinner, started in list(self._phases):
            row = Table.grid(padding=(0, 1))
            row.add_row(spinner, Text(_clock(time.monotonic() - started), "dim"))
            parts.append(row)
        if not parts:
            return Text("")
        title = literal(self._title, "bold")
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim", padding=(0, 1))

    def _render_head(self) -> RenderableType:
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True)
        bar: RenderableType = Text("")
        if self._total_steps:
            bar = ProgressBar(total=self._total_steps, completed=self._newest_step or 0)
        pace = self._pace.seconds_per_step()
        left = self._pace.left()
        head.add_row(
            Text(f"step {self._pace.position()}", "bold"),
            bar,
            Text("" if pace is None else f"{pace:.1f} s/step", "dim"),
            Text(f"{left} left" if left else "", "cyan"),
        )
        return head

    def _render_figures(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2), expand=True)
        columns = 3
        for _ in range(columns):
            grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        cells = [self._render_field(field) for field in self._fields]
        if len(self._trend) > 1:
            width = max(8, min(24, self._console.width // columns - 12))
            spark = sparkline(list(self._trend)[-width:])
            cells.append(Text.assemble((f"{self._fields[0].label} ", "dim"), (spark, "green")))
        for start in range(0, len(cells), columns):
            row = cells[start : start + columns]
            grid.add_row(*row, *[Text("")] * (columns - len(row)))
        return grid

    def _render_field(self, field: Field) -> Text:
        step, value = self._figures.get(field.metric, (-1, None))
        if not field.sticky and step != self._newest_step:
            value = None
        figure = f"{field.format(value)}{field.unit}" if value is not None else "-"
        cell = Text.assemble((f"{field.label} ", "dim"), (figure, "bold"))
        if field.sticky and value is not None and step != self._newest_step:
            cell.append(f" at step {step}", "dim")
        return cell


def _literal(renderable: RenderableType) -> RenderableType:
    return literal(renderable) if isinstance(renderable, str) else renderable


class _Pace:
    """How fast steps come, and when the last one may be done."""

    def __init__(self, total_steps: int | None) -> None:
        self._total = total_steps
        self._ticks: deque[tuple[int, float]] = deque(maxlen=_PACE_WINDOW + 1)

    def tick(self, step: int) -> None:
        self._ticks.append((step, time.monotonic()))

    def position(self) -> str:
        step = self._ticks[-1][0] if self._ticks else 0
        return f"{step}/{self._total}" if self._total else str(step)

    def seconds_per_step(self) -> float | None:
        if len(self._ticks) < 2 or self._ticks[-1][0] <= self._ticks[0][0]:
            return None
        (first, begin), (last, end) = self._ticks[0], self._ticks[-1]
        return (end - begin) / (last - first)

    def left(self) -> str:
        pace = self.seconds_per_step()
        if pace is None or not self._total:
            return ""
        return _clock(pace * max(0, self._total - self._ticks[-1][0]))


def sparkline(values: Sequence[float]) -> str:
    """The values as a row of block characters, the lowest one lowest. Empty for no values."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return _SPARKS[0] * len(values)
    return "".join(_SPARKS[round((value - low) / (high - low) * (len(_SPARKS) - 1))] for value in values)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
