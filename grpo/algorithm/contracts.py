"""Arguments and results of your functions, for each config key that accepts a function.

Such a key accepts a built-in name, `module:function` or `file.py:function` (docs/objectives.md). A keyword-only
parameter gets its value from `algorithm.options`, else from the key of `algorithm` with its name (`clip_low`), else
from its default. `grpo.algorithm.tiny_batch` tries the functions of the objective on a tiny batch before a run starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from grpo.algorithm.aggregation import Weighting
from grpo.algorithm.losses import PolicyLoss, Sequences
from grpo.types import Group


class Advantage(Protocol):
    """`algorithm.advantage`: rewards, and a mask of the valid rewards -> a number for each completion, all [P, G].

    It runs on the driver, on a whole training step, so a completion may be compared with any other. Elements that are
    not valid (a failed verdict, padding of a shorter group) must not change the rest, and are set to 0 afterwards.

        def above_half(rewards_PG, valid_PG):
            return rewards_PG - 0.5
    """

    def __call__(self, rewards_PG: Tensor, valid_PG: Tensor, /) -> Tensor:
        """float [P, G]."""


class Ratio(Protocol):
    """`algorithm.ratio`: present and old log-probabilities, and advantages -> the loss of each token, all [T].

    It runs on every rank, on a microbatch. So a token may depend only on tokens of the same sequence (by
    `sequences.sum` and `sequences.mean`). Otherwise the gradient would depend on the split of the batch. The learner
    minimises the loss, after weighting, summing and dividing it. The function may omit `sequences`.

        def reinforce(logprobs_T, old_logprobs_T, advantages_T):
            return -advantages_T * logprobs_T
    """

    def __call__(
        self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, sequences: Sequences, /
    ) -> Tensor | PolicyLoss:
        """float [T]; a PolicyLoss also reports the ratio and the clipped tokens."""


class Aggregation(Protocol):
    """`algorithm.aggregation`: lengths -> the weight of a token of each completion, and the denominator.

    It runs on the driver, on a whole optimizer step before the split, and gets only lengths. So no split changes the
    gradient. A completion of length 0 carries no loss; its weight is 0 and it must not change the rest.

        def root_mean(lengths):
            weights = [[length**-0.5 if length else 0.0 for length in group] for group in lengths]
            return weights, sum(length**0.5 for group in lengths for length in group)
    """

    def __call__(self, lengths: Sequence[Sequence[int]], /) -> Weighting:
        """[group][completion] -> weight, 0 or more; the denominator, above 0."""


class KL(Protocol):
    """`algorithm.kl`: log-probabilities under policy and reference -> the divergence at each token, all [T].

    It runs on microbatches in the loss and on single completions in the reward. So a token must not depend on others.

        def absolute(logprobs_T, reference_logprobs_T):
            return (logprobs_T - reference_logprobs_T).abs()
    """

    def __call__(self, logprobs_T: Tensor, reference_logprobs_T: Tensor, /) -> Tensor:
        """float [T]."""


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A training step, for `callbacks.step`.

    Attributes:
        step: number of the step, from 1.
        metrics: metrics of the step, by the names of docs/metrics.md.
        groups: groups of the step.
        folder: folder of the run.
    """

    step: int
    metrics: Mapping[str, float]
    groups: tuple[Group, ...]
    folder: Path


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that is complete on disk, for `callbacks.checkpoint`.

    Attributes:
        step: number of training steps before the checkpoint.
        checkpoint: folder of the checkpoint; transformers and vLLM can load its folder `policy/`.
        folder: folder of the run.
    """

    step: int
    checkpoint: Path
    folder: Path


class StepCallback(Protocol):
    """`callbacks.step`: called on the driver after each training step.

    Each returned number becomes the metric `custom/<name>`.

        def longest(finished):
            return {"longest": max(len(r.completion.token_ids) for g in finished.groups for r in g.rollouts)}
    """

    def __call__(self, finished: FinishedStep, /) -> Mapping[str, float] | None:
        """Numbers by name, or None."""


class CheckpointCallback(Protocol):
    """`callbacks.checkpoint`: called on the driver after each checkpoint.

    Its result is ignored.

        def announce(saved):
            (saved.folder / "newest.txt").write_text(str(saved.checkpoint))
    """

    def __call__(self, saved: SavedCheckpoint, /) -> object:
        """Anything."""
