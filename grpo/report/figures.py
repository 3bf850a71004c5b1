"""Draw the curves of a run, or of several runs, as PNG files. The data comes from the run folders.

    overview([run], run / "figures")                               one run
    overview([run_a, run_b], folder)                               two runs: a line for each
    overview({"GRPO": [seed_1, seed_2, seed_3]}, folder)           seeds of one recipe: mean, and shaded range

Each file is made for a README or a paper: it has a light background and is legible at a width of 800 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from grpo import files
from grpo.report.charts import STEP_TIME, RunChart, charts_of, is_rare
from grpo.report.metrics_log import Curve, History, read_history, run_names
from grpo.report.step_time import PARTS, StepTime, mean_step_time, step_time

# Okabe and Ito's colours, which colour-blind readers can distinguish. Darker colours come first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PART_COLOURS = {
    "generate": "#0072B2",
    "verify": "#E69F00",
    "learn": "#009E73",
    "sync": "#CC79A7",
    "rest": "#B8BEC6",
}
_STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#9aa1a9",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": "#3a4148",
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#3a4148",
    "ytick.color": "#3a4148",
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}
# 160 dots an inch: 10 inches give 1600 pixels, which stay sharp if a page shows the figure at a width of 800.
_DOTS_PER_INCH = 160
# Largest number of bars of a stack. With more bars the edges are mostly noise.
_MOST_BARS = 100

Runs = Sequence[Path] | Mapping[str, Sequence[Path]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """The source of a curve: a run, or the seeds of a recipe."""

    label: str
    colour: str
    histories: tuple[History, ...]

    def curves(self, metric: str) -> tuple[Curve, ...]:
        return tuple(curve for history in self.histories if (curve := history.curve(metric).finite()))

    def step_time(self) -> StepTime | None:
        return mean_step_time([timed for history in self.histories if (timed := step_time(history))])


def overview(runs: Runs, folder: Path) -> tuple[Path, ...]:
    """Draw the measured curves: `overview.png` with all curves, then a file for each curve.

    Args:
        runs: either a list of run folders, or lists of run folders by label. In a list, each run gets a curve. With
            labels, each label gets a curve, and its runs differ only by seed: the curve is the mean at the steps that
            all of these runs reached, with a band from the lowest to the highest value.
        folder: folder for the files. If it is missing, it is created.

    Returns:
        The paths of the files, the overview first; empty if no run has measured values.
    """
    entries = _entries(runs)
    charts = [
        chart for chart in charts_of([history for entry in entries for history in entry.histories]) if chart.has_figure
    ]
    if not charts:
        return ()
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with rc_context(_STYLE):
        columns = 2 if len(charts) > 1 else 1
        rows = math.ceil(len(charts) / columns)
        figure = Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")
        for position, chart in enumerate(charts, start=1):
            _draw(chart, figure.add_subplot(rows, columns, position), entries)
        if len(entries) == 1:
            figure.suptitle(entries[0].label, x=0.01, ha="left", fontsize=11, color="#3a4148")
        written.append(_save(figure, folder / "overview.png"))
        for chart in charts:
            figure = Figure(figsize=(6.25, 3.9), layout="constrained")
            _draw(chart, figure.add_subplot(), entries)
            written.append(_save(figure, folder / f"{chart.name}.png"))
    return tuple(written)


def mean_and_band(curves: Sequence[Curve]) -> tuple[Curve, Curve, Curve]:
    """The mean, lowest and highest value of several curves, at the steps that all these curves have."""
    shared = sorted(set.intersection(*(set(curve.steps) for curve in curves))) if curves else []
    columns = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    stacked = [[column[step] for column in columns] for step in shared]
    steps = tuple(shared)
    return (
        Curve(steps, tuple(sum(values) / len(values) for values in stacked)),
        Curve(steps, tuple(min(values) for values in stacked)),
        Curve(steps, tuple(max(values) for values in stacked)),
    )


def _entries(runs: Runs) -> tuple[_Entry, ...]:
    if isinstance(runs, Mapping):
        labelled = [(label, list(paths)) for label, paths in runs.items()]
    else:
        labelled = [(name, [path]) for name, path in zip(run_names(runs), runs, strict=True)]
    return tuple(
        _Entry(label, _COLOURS[index % len(_COLOURS)], tuple(read_history(Path(path)) for path in paths))
        for index, (label, paths) in enumerate(labelled)
    )


def _draw(chart: RunChart, axes: Axes, entries: Sequence[_Entry]) -> None:
    if chart is STEP_TIME:
        _draw_step_time(axes, entries)
        return
    _draw_curves(axes, entries, chart.metric, marker="o" if is_rare(chart.metric) else "")
    if len(entries) == 1:
        _draw_behind(axes, entries[0], chart)
    if chart.low is not None:
        # A reward may be negative.
        axes.set_ylim(bottom=min(chart.low, axes.dataLim.y0))
    if chart.high is not None:
        axes.set_ylim(top=1.02 * chart.high)
    if (chart.low, chart.high) == (0.0, 1.0):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title(chart.title if len(entries) == 1 else chart.title_of_several)
    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(entries) > 1:
        axes.legend(loc="best")


def _draw_behind(axes: Axes, entry: _Entry, chart: RunChart) -> None:
    """Draw the other curves of a chart in grey, behind the first. These curves have a value at every training step."""
    behind = [(label, mean) for label, metric in chart.curves[1:] for mean, _, _ in _shown(entry, metric)]
    for label, mean in behind:
        drawn = mean.smooth() if mean.is_noisy() else mean
        axes.plot(drawn.steps, drawn.values, color="#8a929b", linewidth=1.3, zorder=1.5, label=label)
    if behind:
        for line in axes.get_lines()[:1]:
            if line.get_marker() == "o":
                seeds = len(entry.histories)
                line.set_label(chart.curves[0][0] + (f", mean of {seeds}" if seeds > 1 else ""))
        axes.legend(loc="best")


def _draw_step_time(axes: Axes, entries: Sequence[_Entry]) -> None:
    timed = [(entry.label, mean) for entry in entries if (mean := entry.step_time())]
    if len(entries) == 1 and timed:
        _stack_over_steps(axes, timed[0][1])
    else:
        _stack_by_entry(axes, timed)


def _stack_over_steps(axes: Axes, timed: StepTime) -> None:
    shares, longest = timed.shares(), max(timed.totals())
    top, is_cut = timed.top()
    timed = timed.thinned(_MOST_BARS)
    edges = timed.edges()
    tops = [0.0] * len(timed.steps)
    for part, seconds in timed.parts.items():
        bottoms, tops = tops, [low + more for low, more in zip(tops, seconds, strict=True)]
        label = f"{part} {shares[part]:.0%}"
        # Each step has a flat top. If tops were interpolated, a single slow step would look like several slow steps.
        axes.stairs(tops, edges, baseline=bottoms, fill=True, color=_PART_COLOURS[part], label=label)
    # Leave space for the legend above the stack, because the legend would hide data anywhere else.
    axes.set_ylim(0, 1.42 * top)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_title(f"Step time (longest {longest:.1f} s)" if is_cut else "Step time")
    axes.set_xlabel("step")
    axes.set_ylabel("seconds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="upper right", ncols=3, handlelength=1.0, columnspacing=1.2, frameon=True, edgecolor="none")


def _stack_by_entry(axes: Axes, timed: Sequence[tuple[str, StepTime]]) -> None:
    labels = [label for label, _ in timed]
    begins = [0.0] * len(timed)
    means = [run.means() for _, run in timed]
    for part in (part for part in PARTS if any(part in each for each in means)):
        widths = [each.get(part, 0.0) for each in means]
        axes.barh(labels, widths, left=begins, color=_PART_COLOURS[part], height=0.6, label=part)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_title("Step time, mean")
    axes.set_xlabel("seconds")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, handlelength=1.0, columnspacing=1.0)


def _shown(entry: _Entry, metric: str) -> list[tuple[Curve, Curve, Curve]]:
    curves = entry.curves(metric)
    return [mean_and_band(curves)] if curves else []


def _draw_curves(axes: Axes, entries: Sequence[_Entry], metric: str, marker: str = "") -> None:
    for entry in entries:
        for mean, low, high in _shown(entry, metric):
            if len(entry.histories) > 1:
                axes.fill_between(mean.steps, low.values, high.values, color=entry.colour, alpha=0.18, linewidth=0)
            drawn = mean
            if mean.is_noisy() and not marker:
                axes.plot(mean.steps, mean.values, color=entry.colour, alpha=0.25, linewidth=1.0)
                drawn = mean.smooth()
            single = marker or ("o" if len(drawn.steps) == 1 else "")
            axes.plot(drawn.steps, drawn.values, color=entry.colour, marker=single, markersize=4.5, label=entry.label)


def _save(figure: Figure, path: Path) -> Path:
    with files.whole_file(path) as partial:
        figure.savefig(partial, dpi=_DOTS_PER_INCH, format="png")
    return path
