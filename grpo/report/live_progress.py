"""The live panel of a job, for a console that is a terminal."""

from __future__ import annotations

import atexit
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from grpo.report.display import Field, StepPace, clock, shown_literally, sparkline
from grpo.terminal import literal
from grpo.types import Phase

# Four frames a second are smooth enough for a spinner, and cost little on a machine whose cores generate tokens.
_FRAMES_PER_SECOND = 4


class _Redirected(FileProxy):
    """Stream that prints above the panel, and reads colours also in a line without end.

    rich's own stream reads them only in whole lines. It prints the start of a line as plain text, so a `Terminal` would
    show the name of the escape character. Ray's colorama writes such a start, without visible text, when Python ends.
    """

    def __init__(self, console: Console, file: TextIO) -> None:
        super().__init__(console, file)
        self._begun = ""

    def write(self, text: str) -> int:
        self._begun = (self._begun + text).rpartition("\n")[2]
        return super().write(text)

    def flush(self) -> None:
        if Text.from_ansi(self._begun).plain:
            self.write("\n")


class LiveProgress:
    """A panel at the bottom of the terminal. Other output scrolls above the panel."""

    def __init__(self, title: str, total_steps: int | None, fields: Sequence[Field], console: Console) -> None:
        self._title, self._fields, self._console = title, tuple(fields), console
        self._pace = StepPace(total_steps)
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
        # `Live.stop` puts the streams back that it has replaced.
        if sys.stdout is not streams_before[0]:
            sys.stdout = _Redirected(console, streams_before[0])
        if sys.stderr is not streams_before[1]:
            sys.stderr = _Redirected(console, streams_before[1])
        self._hold_log_handlers(streams_before)
        # The panel hides the cursor. Show the cursor again, however the process ends.
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
            # A phase between steps (an evaluation, a checkpoint) leaves a permanent line only if it fails.
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
                # An evaluation leaves a line, so that the scrollback has all of them.
                if field.sticky:
                    self.show(f"step {step}: {field.label} accuracy {field.format(metrics[field.metric])}")
        trend = metrics.get(self._fields[0].metric)
        if trend is not None and math.isfinite(trend):
            self._trend.append(trend)

    def show(self, renderable: RenderableType) -> None:
        self._console.print(shown_literally(renderable))

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
        # rich replaces sys.stdout and sys.stderr, but a log handler that was made earlier holds the real stream and
        # would write across the panel. Redirect the handler to the replacement until the panel is closed.
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
        # Copy the list, because the job's thread may open and close phases while this thread draws.
        for spinner, started in list(self._phases):
            row = Table.grid(padding=(0, 1))
            row.add_row(spinner, Text(clock(time.monotonic() - started), "dim"))
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
        remaining = self._pace.left()
        head.add_row(
            Text(f"step {self._pace.position()}", "bold"),
            bar,
            Text("" if pace is None else f"{pace:.1f} s/step", "dim"),
            Text(f"{remaining} left" if remaining else "", "cyan"),
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
