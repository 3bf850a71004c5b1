"""The charts of a run. The page of `grpo view`, `report.html` and the PNG figures share this list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo.report.metrics_log import History


@dataclass(frozen=True, slots=True)
class RunChart:
    """A chart of a run, or of several runs together.

    Attributes:
        name: name of the PNG file, without `.png`.
        title: name of the measured quantity.
        curves: (label, metric) pairs. A chart of a single run draws all these metrics; a chart of several runs
            draws only the first metric, with a line for each run.
        title_of_several: title of a chart of several runs.
        unit: unit of the values.
        low, high: the value axis covers at least the range from `low` to `high`, so that noise does not look like a
            change.
        has_figure: whether the chart also gets a PNG file.
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
        """The main metric of the chart."""
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
        (("held-out, greedy", "eval/accuracy"), ("training, at rollout.temperature", "rollout/accuracy")),
        "Held-out accuracy",
        low=0.0,
        high=1.0,
    ),
    RunChart(
        "preference_accuracy",
        "Preference accuracy",
        (("held-out", "eval/rewards/accuracies"), ("training", "rewards/accuracies")),
        "Held-out preference accuracy",
        low=0.0,
        high=1.0,
    ),
    RunChart(
        "implicit_rewards",
        "Implicit rewards",
        (("margin", "rewards/margins"), ("chosen", "rewards/chosen"), ("rejected", "rewards/rejected")),
        "Margin of the implicit rewards",
        "beta x nats",
    ),
    RunChart("reward", "Mean reward", (("mean reward", "reward/mean"),), "Mean reward", low=0.0),
    RunChart(
        "completion_length",
        "Completion length",
        (("mean", "rollout/completion_tokens_mean"),),
        "Completion length",
        "tokens, mean",
        low=0.0,
    ),
    RunChart(
        "teacher",
        "Reverse KL to the teacher",
        (("mean over sampled tokens", "teacher/reverse_kl"),),
        "Reverse KL to the teacher",
        "nats per token",
        low=0.0,
    ),
    RunChart(
        "curriculum",
        "Prompts by difficulty",
        tuple(
            (label, f"curriculum/{pool}_prompts")
            for label, pool in (
                ("normal", "normal"),
                ("easy", "easy"),
                ("hard", "hard"),
                ("set aside: always solved", "solved"),
                ("set aside: never solved", "unsolved"),
            )
        ),
        "Prompts of normal difficulty",
        "prompts",
        low=0.0,
    ),
    STEP_TIME,
    MISMATCH,
)


def charts_of(histories: Sequence[History]) -> tuple[RunChart, ...]:
    """The charts for which at least one run has a finite value."""

    def is_measured(*metrics: str) -> bool:
        return any(history.curve(metric).finite() for history in histories for metric in metrics)

    # Supervised fine-tuning has no reward, so the loss is shown. If there is a reward, the loss tells little.
    hidden = LOSS if is_measured("reward/mean") else None
    return tuple(
        chart for chart in RUN_CHARTS if chart is not hidden and is_measured(*(metric for _, metric in chart.curves))
    )


def axis_of(metric: str) -> tuple[float | None, float | None]:
    """The lowest and highest value that the axis of a metric must include; None if measured values decide this."""
    chart = next((chart for chart in RUN_CHARTS if metric in dict(chart.curves).values()), None)
    return (chart.low, chart.high) if chart else (None, None)


def is_rare(metric: str) -> bool:
    """Whether a metric is measured at so few steps that a chart marks each point."""
    return metric.startswith("eval/")
