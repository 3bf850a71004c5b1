"""Arguments and results of your functions, for each config key that accepts a function.

Such a key accepts a built-in name, `module:function` or `file.py:function` (docs/objectives.md). The value of a
keyword-only parameter comes from `algorithm.options`. If the value is not there, it comes from the key of `algorithm`
with the parameter's name, for example `clip_low`. Otherwise the parameter's default is used. Before a run starts,
`grpo.algorithm.tiny_batch` tries the functions of the objective on a tiny batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from grpo.algorithm.aggregation import Weighting
from grpo.algorithm.losses import PolicyLoss, Sequences
from grpo.types import Group

if TYPE_CHECKING:
    from torch import Tensor


class Advantage(Protocol):
    """`algorithm.advantage`: takes rewards and a mask of the valid rewards, and returns the advantages, all [P, G].

    The function runs on the driver, on a whole training step. So it may compare a completion with any other completion.
    Elements that are not valid (a failed verdict, padding of a shorter group) must not change the other advantages. The
    caller sets the advantages of these elements to 0.

        def above_half(rewards_PG, valid_PG):
            return rewards_PG - 0.5
    """

    def __call__(self, rewards_PG: Tensor, valid_PG: Tensor, /) -> Tensor:
        """Return the advantages, float [P, G]."""


class Ratio(Protocol):
    """`algorithm.ratio`: takes present and old log-probabilities and advantages, and returns token losses, all [T].

    The function runs on every rank, on a microbatch. So a token's loss may depend only on tokens of the same sequence
    (use `sequences.sum` and `sequences.mean`). Otherwise the gradient would depend on the split of the batch. The
    learner weights, sums and divides the losses, and minimises the result. The function may omit `sequences`.

        def reinforce(logprobs_T, old_logprobs_T, advantages_T):
            return -advantages_T * logprobs_T
    """

    def __call__(
        self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, sequences: Sequences, /
    ) -> Tensor | PolicyLoss:
        """Return the loss of each token, float [T]. Or return a PolicyLoss, which also has the ratio and the clips."""


class Aggregation(Protocol):
    """`algorithm.aggregation`: takes lengths, and returns the token weight of each completion, and the denominator.

    The function runs on the driver, on a whole optimizer step before it is split over ranks, and gets only lengths. So
    no split changes the gradient. A completion of length 0 carries no loss. Its weight must be 0, and it must not
    change the other weights or the denominator.

        def root_mean(lengths):
            weights = [[length**-0.5 if length else 0.0 for length in group] for group in lengths]
            return weights, sum(length**0.5 for group in lengths for length in group)
    """

    def __call__(self, lengths: Sequence[Sequence[int]], /) -> Weighting:
        """Return the weights, [group][completion], each 0 or more; and the denominator, above 0."""


class KL(Protocol):
    """`algorithm.kl`: takes log-probabilities under policy and reference, and returns token divergences, all [T].

    The function runs on microbatches for the loss, and on single completions for the reward. So the value of a token
    must not depend on other tokens.

        def absolute(logprobs_T, reference_logprobs_T):
            return (logprobs_T - reference_logprobs_T).abs()
    """

    def __call__(self, logprobs_T: Tensor, reference_logprobs_T: Tensor, /) -> Tensor:
        """Return the divergence at each token, float [T]."""


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
        checkpoint: folder of the checkpoint; transformers and vLLM can load `policy/` in this folder.
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
        """Return numbers by their names, or None."""


class CheckpointCallback(Protocol):
    """`callbacks.checkpoint`: called on the driver after each checkpoint.

    The run ignores the result.

        def announce(saved):
            (saved.folder / "newest.txt").write_text(str(saved.checkpoint))
    """

    def __call__(self, saved: SavedCheckpoint, /) -> object:
        """Return any value; it is ignored."""
