"""The learning rate over a run."""

from __future__ import annotations

import math

from grpo import config


def learning_rate(learner: config.LearnerConfig, step: int, total_steps: int) -> float:
    """Return the rate of optimizer step `step`, counted from 0: linear warm-up, then the configured schedule."""
    if step < learner.warmup_steps:
        return learner.learning_rate * (step + 1) / learner.warmup_steps
    progress = (step - learner.warmup_steps) / max(1, total_steps - learner.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))),
    }[learner.schedule]
    return learner.learning_rate * max(0.0, factor)
