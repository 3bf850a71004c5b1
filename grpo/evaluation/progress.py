"""What a person sees of an evaluation: a bar while it samples, a table at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from grpo.evaluation.metrics import TaskMetrics
from grpo.evaluation.statistics import Estimate
from grpo.evaluation.store import Record
from grpo.terminal import LiteralTable, literal
from grpo.visible import visible

# A log wants no more lines than a person reads.
_SECONDS_BETWEEN_LINES = 30.0


class EvalProgress:
    """A bar with the share of correct completions so far; without a terminal, a line now and then."""

    def __init__(self, task: str, total: int, console: Console) -> None:
        """Show nothing yet."""
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(visible(task), total=total, told="")
        self._name, self._total, self._console = task, total, console
        self._done = self._known = self._correct = self._tokens = 0
        self._started = self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            self._line()

    def add(self, count: int, record: Record | None = None, *, stored: bool = False) -> None:
        """Count completions: one that has come, or `stored` ones that were there."""
        self._done += count
        if stored and count:
            text = f"{self._name}: {count:,} of {self._total:,} completions are stored already"
            self._console.print(literal(text), soft_wrap=True)
        if record is not None:
            self._tokens += record.completion_tokens
            if not record.status.failed:
                self._known += 1
                self._correct += record.correct
        self._bar.update(self._task, completed=self._done, told=self._told())
        if not self._console.is_terminal and time.monotonic() - self._told_at > _SECONDS_BETWEEN_LINES:
            self._line()

    def _told(self) -> str:
        if not self._known:
            return ""
        speed = self._tokens / max(1e-9, time.monotonic() - self._started)
        return f"{self._correct / self._known:.1%} correct, {speed:,.0f} tokens/s"

    def _line(self) -> None:
        self._told_at = time.monotonic()
        text = f"{self._name}: {self._done:,} of {self._total:,} completions"
        told = self._told()
        self._console.print(literal(f"{text}; {told}" if told else text), soft_wrap=True)


def results_table(model: str, found: Mapping[str, TaskMetrics]) -> Table:
    """The numbers of all tasks, with their 95 % intervals."""
    table = LiteralTable(title=f"{model}, 95 % intervals over problems")
    for name in ("task", "problems", "measure", "value", "interval"):
        table.add_column(name, justify="left" if name in ("task", "measure") else "right")
    for task, metrics in found.items():
        head = [task, f"{metrics.problems:,} x {metrics.k * len(metrics.seeds)}"]
        for name, one in metrics.estimates.items():
            if name.startswith("avg@") or name == "status/correct" or (name.startswith("status/") and one.value == 0):
                continue
            table.add_row(*head, name, *_figures(name, one))
            head = ["", ""]
        if len(metrics.accuracy_by_seed) > 1:
            told = ", ".join(f"{seed}: {value:.2%}" for seed, value in metrics.accuracy_by_seed.items())
            table.add_row("", "", "accuracy by seed", told, "")
        table.add_section()
    return table


def _figures(name: str, one: Estimate) -> tuple[str, str]:
    if name == "completion_tokens":
        return f"{one.value:,.1f}", f"{one.low:,.1f} to {one.high:,.1f}"
    return f"{one.value:.2%}", f"{one.low:.2%} to {one.high:.2%}"
