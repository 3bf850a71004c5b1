"""The length of a training, its checkpoints, and the policy that it keeps as the best."""

from __future__ import annotations

from typing import Literal

from grpo.config.section import Positive, Section

# Metrics of an evaluation that can say which policy is the best.
EVAL_METRICS = ("eval/accuracy", "eval/completion_tokens_mean")


class ScheduleConfig(Section):
    """Length of the training, and its checkpoints."""

    steps: Positive
    """Number of steps."""
    checkpoint_every: Positive = 50
    """Steps between checkpoints. There is always a checkpoint after the last step and on Ctrl-C."""
    keep_checkpoints: Positive = 2
    """Number of checkpoints to keep; older checkpoints are deleted."""
    keep_best: str | None = None
    """Metric whose best step's policy is kept in `best/` of the run's folder, for example `eval/accuracy`. It must
    measure the step's own policy: `eval/...`, or `custom/...` of your callback. None keeps none."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Whether the highest or the lowest value of `keep_best` is the best."""

    def problems(self, *, evaluated: bool) -> list[str]:
        """Find a metric that cannot choose the best policy. `evaluated`: whether the run has a section `evaluation`."""
        metric = self.keep_best
        if metric is None or metric.startswith("custom/") or (evaluated and metric in EVAL_METRICS):
            return []
        if metric in EVAL_METRICS:
            return [f"train.keep_best={metric} needs a section evaluation, which measures it; add one"]
        known = " or ".join(EVAL_METRICS)
        return [
            f"train.keep_best={metric} does not measure the policy after a step; give {known}, or custom/NAME of a "
            "function in callbacks.step"
        ]
