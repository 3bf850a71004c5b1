"""Compute the curves that the page shows, as plain data, from the metrics of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.report.charts import MISMATCH, STEP_TIME, RunChart, axis_of, charts_of, is_rare
from grpo.report.metrics_log import Curve, History
from grpo.report.step_time import step_time
from grpo.view.geometry import Chart, line_chart, step_time_chart
from grpo.view.recipe import mismatch_alarm_of
from grpo.view.runs import RunData, shown

# Number of colours for runs in the style sheet.
_COLOURS = 6


def main_charts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The first charts of the page. For a single run, a chart has all its curves; otherwise a line for each run."""
    chosen = charts_of([run.history for run in runs])
    drawn = [
        (chart, run_chart(runs[0], chart) if len(runs) == 1 else _metric_chart(runs, chart.metric, chart))
        for chart in chosen
    ]
    return [{"name": chart.name} | plain_chart(made) for chart, made in drawn if made]


def charts(runs: Sequence[RunData], names: Sequence[str]) -> list[dict[str, Any]]:
    """A chart for each named metric that a run has. A chart has a line for each run, in the run's colour."""
    known = {name for run in runs for name in run.history.names()}
    drawn = [(name, _metric_chart(runs, name)) for name in dict.fromkeys(names) if name in known]
    return [{"metric": name} | plain_chart(made) for name, made in drawn if made]


def _metric_chart(runs: Sequence[RunData], metric: str, chart: RunChart | None = None) -> Chart | None:
    low, high = axis_of(metric)
    made = line_chart(
        chart.title_of_several if chart else metric,
        {run.name: run.history.curve(metric) for run in runs},
        _span([run.history for run in runs]),
        unit=chart.unit if chart else "",
        low=low,
        high=high,
        dotted=[run.name for run in runs] if is_rare(metric) else (),
    )
    return made and _restyled(made, {run.name: f"r{at % _COLOURS + 1}" for at, run in enumerate(runs)})


def run_chart(run: RunData, chart: RunChart) -> Chart | None:
    """A chart of a single run, with all its curves."""
    if chart is STEP_TIME:
        timed = step_time(run.history)
        return step_time_chart(timed) if timed else None
    curves = {label: run.history.curve(metric) for label, metric in chart.curves}
    alarm = mismatch_alarm_of(run.settings) if chart is MISMATCH else None
    if alarm is not None and (first := curves[chart.curves[0][0]].finite()):
        curves["alarm"] = Curve(first.steps, (alarm,) * len(first.steps))
    rare = [label for label, metric in chart.curves if is_rare(metric)]
    span = _span([run.history])
    made = line_chart(chart.title, curves, span, unit=chart.unit, low=chart.low, high=chart.high, dotted=rare)
    return made and _restyled(made, {"alarm": "alarm"})


def _span(histories: Sequence[History]) -> tuple[int, int]:
    steps = [line.step for history in histories for line in history.lines] or [0]
    return min(steps), max(steps)


def _restyled(chart: Chart, styles: Mapping[str, str]) -> Chart:
    shapes = (dataclasses.replace(shape, style=styles.get(shape.label, shape.style)) for shape in chart.shapes)
    return dataclasses.replace(chart, shapes=tuple(shapes))


def step_time_of(run: RunData) -> dict[str, Any] | None:
    """The chart of the time of each part of a step; None if no step was timed."""
    chart = run_chart(run, STEP_TIME)
    return plain_chart(chart) if chart else None


def plain_chart(chart: Chart) -> dict[str, Any]:
    """A chart as plain data for JSON."""
    return shown(dataclasses.asdict(chart))
