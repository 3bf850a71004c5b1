"""The length of a fine-tuning and, for preferences, the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from grpo.config.section import Positive, Section


class FineTuningScheduleConfig(Section):
    """Length of a fine-tuning, and its checkpoints."""

    steps: Positive
    """Number of optimizer steps."""
    batch_size: Positive = 64
    """Rows in one optimizer step."""
    max_tokens: Positive = 1024
    """Longest row, prompt and response together, in tokens. Longer rows are dropped, and counted."""
    checkpoint_every: Positive = 500
    """Steps between checkpoints. There is always a checkpoint after the last step and on Ctrl-C."""


class SftScheduleConfig(FineTuningScheduleConfig):
    """Length of supervised fine-tuning, and its checkpoints."""


class PreferenceScheduleConfig(FineTuningScheduleConfig):
    """What the jobs share that learn from preferences."""

    evaluate_every: Positive = 50
    """Steps between evaluations on the rows that `data.validation` holds out. There is always an evaluation after the
    last step."""


class DpoScheduleConfig(PreferenceScheduleConfig):
    """Length of the training on preferences, its checkpoints, and its loss (docs/preferences.md)."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO (arXiv:2305.18290). `ipo`: squared distance to a fixed margin, which does not grow without end
    (arXiv:2310.12036)."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the tie to the starting policy. Higher values keep the policy nearer. For `ipo`, the margin is 1 / (2
    beta) nats per token."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the preferences that are believed to be the wrong way round (conservative DPO). For `sigmoid` only."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the negative log-likelihood of the chosen answer, in nats per token (arXiv:2404.19733). Above 0, it
    keeps the chosen answer's probability from falling."""
    chosen_alarm: Annotated[float, Field(gt=0)] | None = 1.0
    """Threshold for the fall of the chosen answers' log-probability since the start, in nats per answer, as a mean of
    ten steps. Beyond it, the run warns once. None turns the alarm off."""


class RewardScheduleConfig(PreferenceScheduleConfig):
    """Length of the training of a reward model, its checkpoints, and its loss (docs/reward_models.md)."""

    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """`bradley_terry`: each pair of answers by itself (arXiv:2203.02155, equation 1). `plackett_luce`: the likelihood
    of a whole ranking. For rows with two answers, both are the same."""
    center: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared sum of the two scores of a pair, which keeps scores near 0 (arXiv:2312.09244). Pairs say
    nothing about the level of scores; 0.01 is usual."""
