"""The table at the end of a run: its results, its speed, and the time of each phase."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from grpo.report.metrics_log import Curve, History
from grpo.report.step_time import step_time
from grpo.terminal import LiteralTable
from grpo.visible import visible


@dataclass(frozen=True, slots=True)
class ClosingTable:
    """Rows with a label and a value. rich prints them as a table; `str` returns plain text."""

    title: str
    rows: tuple[tuple[str, str], ...]

    def __rich__(self) -> Table:
        table = LiteralTable(title=self.title, title_style="bold", show_header=False)
        table.add_column(no_wrap=True, style="dim")
        # Long text in the second column is folded, not cut, because the last rows hold paths, and only a whole path is
        # useful.
        table.add_column(overflow="fold")
        for label, figure in self.rows:
            table.add_row(label, figure)
        return table

    def __str__(self) -> str:
        width = max((len(label) for label, _ in self.rows), default=0)
        return visible("\n".join([self.title, *(f"  {label:<{width}}  {figure}" for label, figure in self.rows)]))


def closing_table(
    name: str, history: History, last_rows: Mapping[str, str | Path] | None = None, total_steps: int | None = None
) -> ClosingTable:
    """Return the closing table of a run.

    Args:
        name: name of the run, for the title.
        history: metrics of the run; a metric that was not measured has no row.
        last_rows: paths and commands, by label. They become the last rows.
        total_steps: number of steps that the run's config demands, if it is known. The title then says whether the run
            has reached its end.
    """
    rows = [*_learned(history), *_speed(history), *_time(history)]
    rows += [(label, str(path)) for label, path in (last_rows or {}).items()]
    last = history.last_step()
    done = "no steps" if last is None else f"{last} steps"
    if last is not None and total_steps is not None and last < total_steps:
        done = f"{last} of {total_steps} steps"
    return ClosingTable(f"{name}: {done}", tuple(rows))


def mean_over_time(history: History, name: str) -> float | None:
    """The mean of a rate, weighted by the seconds of each step: the total amount divided by the total time."""
    pairs = [
        (line.metrics[name], line.metrics["time/step_s"])
        for line in history.lines
        if name in line.metrics and "time/step_s" in line.metrics
    ]
    seconds = sum(step for _, step in pairs)
    return sum(rate * step for rate, step in pairs) / seconds if seconds > 0 else None


def _learned(history: History) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    accuracy = history.curve("eval/accuracy").finite()
    if accuracy:
        best = max(range(len(accuracy.values)), key=lambda at: accuracy.values[at])
        figure = _first_to_last(accuracy, 3)
        if best != len(accuracy.values) - 1:
            figure += f"   best {accuracy.values[best]:.3f} at step {accuracy.steps[best]}"
        rows.append(("held-out accuracy", figure))
    for label, name, decimals, unit in (
        ("held-out preference accuracy", "eval/rewards/accuracies", 3, ""),
        ("preference accuracy", "rewards/accuracies", 3, ""),
        ("margin of the implicit rewards", "rewards/margins", 3, ""),
        ("chosen answers' implicit reward", "rewards/chosen", 3, ""),
        ("mean reward", "reward/mean", 3, ""),
        ("completion length", "rollout/completion_tokens_mean", 1, " tokens"),
        ("turns of a conversation", "conversation/turns_mean", 1, ""),
        ("tool calls of a conversation", "conversation/calls_mean", 1, ""),
    ):
        curve = history.curve(name).finite()
        if curve:
            rows.append((label, _first_to_last(curve, decimals) + unit))
    rows += _sources(history)
    # Supervised fine-tuning has no reward, so the loss shows the progress.
    loss = history.curve("learner/loss").finite()
    if loss and not history.curve("reward/mean"):
        rows.append(("loss", _first_to_last(loss, 4)))
    failed = sum(history.curve("rollout/failed_verdicts").finite().values)
    if failed:
        rows.append(("failed verdicts", f"{failed:,.0f} (timeouts and errors; the policy does not learn from them)"))
    rows += _verdicts(history)
    return rows


def _sources(history: History) -> list[tuple[str, str]]:
    """The held-out accuracy and the training accuracy of each named source of the data, at first and at last."""
    rows = []
    for label, pattern in (("held-out", r"eval/([^/]+)/accuracy"), ("training", r"source/([^/]+)/accuracy")):
        matches = [re.fullmatch(pattern, name) for name in history.names()]
        curves = [(match[1], history.curve(match[0]).finite()) for match in matches if match]
        rows += [(f"{source} {label} accuracy", _first_to_last(curve, 3)) for source, curve in curves if curve]
    return rows


def _verdicts(history: History) -> list[tuple[str, str]]:
    """How often each verifier says `correct`, and the times of each verifier's slowest verdicts.

    The times grow if the policy finds answers that are slow to judge.
    """
    matches = [re.fullmatch(r"verifier/([^/]+)/p99_s", name) for name in history.names()]
    verifiers = [match[1] for match in matches if match]
    rows = []
    for verifier in verifiers:
        slow = history.curve(f"verifier/{verifier}/p99_s").finite().values
        if slow:
            seconds = f"99th percentile {_brief(statistics.median(slow))}, at worst {_brief(max(slow))}"
            rows.append((f"{verifier} verdicts", _correct(history, verifier) + seconds))
    return rows


def _correct(history: History, verifier: str) -> str:
    """The share of a verifier's verdicts that are `correct`, at first and at last."""
    shares = history.curve(f"verdict/{verifier}/correct").finite().values
    return f"{shares[0]:.0%} -> {shares[-1]:.0%} correct; " if shares else ""


def _brief(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.2g} ms"


def _speed(history: History) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for label, name in (
        ("completions/s", "throughput/completions_per_s"),
        ("tokens/s", "throughput/tokens_per_s"),
    ):
        mean = mean_over_time(history, name)
        if mean is not None:
            rows.append((label, f"{mean:,.0f}" if mean >= 100 else f"{mean:.1f}"))
    return rows


def _time(history: History) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    timed = step_time(history)
    if timed:
        means, shares = timed.means(), timed.shares()
        rows.append(("mean step time", f"{sum(means.values()):.2f} s"))
        rows += [(f"  {part}", f"{means[part]:6.2f} s  {shares[part]:4.0%}") for part in means]
    for label, name in (("evaluations", "time/eval_s"), ("checkpoints", "time/checkpoint_s")):
        seconds = sum(history.curve(name).finite().values)
        if seconds > 0:
            rows.append((label, f"{seconds:.1f} s in all"))
    working = history.curve("time/run_s").finite()
    if working:
        rows.append(("wall time", duration(working.values[-1])))
    return rows


def duration(seconds: float) -> str:
    """A span of time as text for people: `48 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _first_to_last(curve: Curve, decimals: int) -> str:
    first, last = curve.values[0], curve.values[-1]
    if len(curve.values) == 1:
        return f"{first:,.{decimals}f}"
    return f"{first:,.{decimals}f} -> {last:,.{decimals}f}"
