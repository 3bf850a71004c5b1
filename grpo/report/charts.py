"""Which charts a run has: one list for the page of `grpo view`, for `report.html` and for the PNG figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo.report.metrics_log import History


@dataclass(frozen=True, slots=True)
class RunChart:
    """A chart of one run, or of several runs together.

    Attributes:
        name: the name of the PNG file, without its ending.
        title: what is measured.
        curves: (label, metric) pairs. A chart of one run draws all of them, a chart of several runs draws the first
            metric of each run.
        title_of_several: the title of a chart of several runs.
        unit: what a value counts.
        low, high: the value axis reaches at least from `low` to `high`, so that noise does not mislead a glance.
        has_figure: whether a PNG file is drawn.
    """

    name: str
    title: str
    curves: tuple[tuple[str, str], ...]
    title_of_several: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    has_figure: bool = True

    @property
    def metric(self) -> str:
        """The metric that stands for the chart."""
        return self.curves[0][1]


STEP_TIME = RunChart("step_time", "Step time", (("step", "time/step_s"),), "Step time", "seconds", low=0.0)
MISMATCH = RunChart(
    "mismatch",
    "Train-inference mismatch",
    (("first update", "learner/mismatch_kl_first"), ("all updates", "learner/mismatch_kl")),
    "Train-inference mismatch",
    "nats",
    low=0.0,
    has_figure=False,
)
LOSS = RunChart("loss", "Loss", (("loss", "learner/loss"),), "Loss")
RUN_CHARTS = (
    LOSS,
    RunChart(
        "accuracy",
        "Accuracy",
        (("held-out", "eval/accuracy"), ("training samples", "rollout/accuracy")),
        "Held-out accuracy",
        low=0.0,
        high=1.0,
    ),
    RunChart("reward", "Mean reward", (("mean reward", "reward/mean"),), "Mean reward"),
    RunChart(
        "completion_length",
        "Completion length",
        (("mean", "rollout/completion_tokens_mean"),),
        "Completion length",
        "tokens, mean",
        low=0.0,
    ),
    STEP_TIME,
    MISMATCH,
)


def charts_of(histories: Sequence[History]) -> tuple[RunChart, ...]:
    """The charts for which at least one run has a finite value."""

    def is_measured(*metrics: str) -> bool:
        return any(history.curve(metric).finite() for history in histories for metric in metrics)

    # Supervised fine-tuning earns no reward. A policy-gradient loss, which stands beside a reward, tells a reader
    # nothing.
    hidden = LOSS if is_measured("reward/mean") else None
    return tuple(
        chart for chart in RUN_CHARTS if chart is not hidden and is_measured(*(metric for _, metric in chart.curves))
    )


def axis_of(metric: str) -> tuple[float | None, float | None]:
    """The values that the axis of a metric reaches at least; None where the measured values alone decide."""
    chart = next((chart for chart in RUN_CHARTS if metric in dict(chart.curves).values()), None)
    return (chart.low, chart.high) if chart else (None, None)


def is_rare(metric: str) -> bool:
    """Whether a metric is measured at so few steps that each of its points is marked."""
    return metric.startswith("eval/")
