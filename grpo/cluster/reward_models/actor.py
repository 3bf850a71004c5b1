"""A reward model in a Ray process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from grpo.config.learner import Dtype
from grpo.report.log_file import LogPlace
from grpo.report.logs import follow_libraries, logs_failures, open_actor_log
from grpo.start_up import without_collector

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScorerSetup:
    """The settings of a reward model's process.

    Attributes:
        name: name of the verifier.
        path: folder or hub name of the model.
        dtype: number format of the weights.
        device: `cpu` or `cuda`.
        threads: number of CPU threads.
        batch_tokens: largest number of tokens computed at once, with padding.
    """

    name: str
    path: str
    dtype: Dtype
    device: str
    threads: int
    batch_tokens: int


@logs_failures
class RewardModelActor:
    """A reward model in a separate Ray process. It is loaded once."""

    def __init__(self, setup: ScorerSetup, logs: LogPlace | None = None) -> None:
        """Load the model."""
        from grpo.cluster.session import session_logs

        self._setup = setup
        open_actor_log(logs, repr(self), session_logs)
        with without_collector():
            import torch

            from grpo.policy.scores import load_scorer

            follow_libraries()
        if setup.device == "cpu":
            torch.set_num_threads(setup.threads)
        self._model = load_scorer(setup.path, setup.dtype, "sdpa").to(setup.device).eval()  # type: ignore[arg-type]
        logger.info("the reward model %s is loaded", setup.path)

    def __repr__(self) -> str:
        return f"reward model {self._setup.name}"

    def ready(self) -> int:
        """Return the id of this process, when the model is loaded."""
        return os.getpid()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the score of each sequence at its last token, in order."""
        from grpo.policy.scores import score_tokens

        scores = [0.0] * len(sequences)
        for places in batches([len(ids) for ids in sequences], self._setup.batch_tokens):
            scored = score_tokens(self._model, [list(sequences[at]) for at in places])
            for at, score in zip(places, scored, strict=True):
                scores[at] = score
        return scores


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Divide sequences into batches of similar lengths; return the numbers of each batch's sequences.

    A batch, padded to its longest sequence, has at most `batch_tokens` tokens. A longer sequence is a batch by itself.
    """
    parts: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not parts or lengths[at] * (len(parts[-1]) + 1) > batch_tokens:
            parts.append([])
        parts[-1].append(at)
    return parts
