"""The terminal output of an evaluation: a progress bar during sampling, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from grpo.evaluation.metrics import COUNTS, TaskMetrics
from grpo.evaluation.statistics import Estimate
from grpo.evaluation.store import Record
from grpo.terminal import LiteralTable, literal
from grpo.visible import visible
from rewards.verdict import Status

# A person reads the log: more lines would make it hard to read.
_SECONDS_BETWEEN_LINES = 30.0


class EvalProgress:
    """A progress bar with the share of correct completions so far. Without a terminal it prints a line at intervals."""

    def __init__(self, task: str, total: int, console: Console) -> None:
        """Prepare the bar; show nothing yet."""
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(visible(task), total=total, status="")
        self._name, self._total, self._console = task, total, console
        self._done = self._tokens = 0
        # Problem -> (correct completions, known verdicts), and the sum of the problems' shares of correct completions.
        self._solved: dict[str, tuple[int, int]] = {}
        self._shares = 0.0
        self._started = self._last_line_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            self._line()
        if exception and exception[0] is KeyboardInterrupt:
            stored = f"{self._done:,} of {self._total:,} completions of {self._name} are stored"
            self._console.print(literal(f"stopped: {stored}; the same command continues", "yellow"), soft_wrap=True)

    def start_with(self, records: Sequence[Record]) -> None:
        """Count the completions that are stored already."""
        if records:
            text = f"{self._name}: {len(records):,} of {self._total:,} completions are stored already"
            self._console.print(literal(text), soft_wrap=True)
        for record in records:
            self._count(record)
        self._bar.update(self._task, completed=self._done, status=self._status())

    def add(self, record: Record) -> None:
        """Count a new completion."""
        self._count(record)
        self._tokens += record.completion_tokens
        self._bar.update(self._task, completed=self._done, status=self._status())
        if not self._console.is_terminal and time.monotonic() - self._last_line_at > _SECONDS_BETWEEN_LINES:
            self._line()

    def _count(self, record: Record) -> None:
        self._done += 1
        if record.status.failed:
            return
        correct, known = self._solved.get(record.problem, (0, 0))
        self._shares -= correct / known if known else 0.0
        self._solved[record.problem] = correct, known = correct + record.correct, known + 1
        self._shares += correct / known

    def _status(self) -> str:
        if not self._solved:
            return ""
        speed = self._tokens / max(1e-9, time.monotonic() - self._started)
        # The mean over problems, as in the table at the end.
        return f"{max(0.0, self._shares / len(self._solved)):.2%} correct, {speed:,.0f} tokens/s"

    def _line(self) -> None:
        self._last_line_at = time.monotonic()
        text = f"{self._name}: {self._done:,} of {self._total:,} completions"
        status = self._status()
        self._console.print(literal(f"{text}; {status}" if status else text), soft_wrap=True)


def results_table(model: str, results: Mapping[str, TaskMetrics]) -> Table:
    """Return a table of the estimates of all tasks, with their 95 % intervals."""
    table = LiteralTable(title=f"{model}, 95 % intervals over problems")
    for name in ("task", "problems", "measure", "value", "interval"):
        table.add_column(name, justify="left" if name in ("task", "measure") else "right")
    for task, metrics in results.items():
        head = [task, f"{metrics.problems:,} x {metrics.k * len(metrics.seeds)}"]
        failed = sum(metrics.statuses[status.value] for status in Status if status.failed)
        if failed:
            judged = f"{metrics.completions - failed:,} of {metrics.completions:,}"
            table.add_row(*head, "judged completions", judged, "")
            head = ["", ""]
        for name, estimate in metrics.estimates.items():
            if (
                name.startswith("avg@")
                or name == "status/correct"
                or (name.startswith("status/") and estimate.value == 0)
            ):
                continue
            table.add_row(*head, name, *_figures(name, estimate))
            head = ["", ""]
        if len(metrics.accuracy_by_seed) > 1:
            accuracies = ", ".join(f"{seed}: {value:.2%}" for seed, value in metrics.accuracy_by_seed.items())
            table.add_row("", "", "accuracy by seed", accuracies, "")
        table.add_section()
    return table


def _figures(name: str, estimate: Estimate) -> tuple[str, str]:
    if name in COUNTS:
        interval = "all problems equal" if estimate.method == "all equal" else ""
        return f"{estimate.value:,.1f}", interval or f"{estimate.low:,.1f} to {estimate.high:,.1f}"
    return f"{estimate.value:.2%}", f"{estimate.low:.2%} to {estimate.high:.2%}"
