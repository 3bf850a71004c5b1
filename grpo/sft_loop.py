"""`grpo sft`: supervised fine-tuning on pairs of prompt and response, for the cold start of a policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo.algorithm.minibatches import batch
from grpo.algorithm.packing import TrainingSequence
from grpo.cluster.learner_group import LearnerGroup
from grpo.config import SftConfig
from grpo.data.bad_rows import lines_of
from grpo.data.drawing.cursor import Cursor
from grpo.data.supervised import load_supervised, supervised_turns
from grpo.fine_tuning import fine_tune, under_learner
from grpo.policy.stored import load_tokenizer, local_or_hub
from grpo.report import run_files
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress
from grpo.run.stopwatch import Stopwatch
from grpo.types import Phase


def sft(settings: SftConfig, progress: Progress) -> ClosingTable:
    """Fine-tune a policy, or a new policy with random weights, on the responses of a data set.

    The loss is the mean negative log-likelihood of the response's tokens, including the end token. The run writes the
    policy in Hugging Face format to `policy/` in the run's folder.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder or the cluster.
        TimeoutError: a deadline passed; the message names the operation.
    """
    return fine_tune(
        settings,
        progress,
        lambda saved: _starting_policy(settings, make_anew=saved is None),
        lambda start: SupervisedLessons(settings, start, progress),
    )


class SupervisedLessons:
    """Rows with a response to learn."""

    def __init__(self, settings: SftConfig, start: str, progress: Progress) -> None:
        """Read the data with the tokenizer of the policy `start`."""
        self._settings = settings
        data = load_supervised(settings.data, load_tokenizer(start), max_tokens=settings.sft.max_tokens)
        rows, dropped = data.sequences, data.dropped
        if dropped:
            progress.show(f"{dropped} of {dropped + len(rows)} rows are longer than sft.max_tokens and are left out")
        if data.left_out:
            progress.show(f"rows left out (data.on_bad_row=drop): {lines_of(data.left_out)}")
        self._cursor: Cursor[TrainingSequence] = Cursor(rows, settings.run.seed)

    def begin(self, learner: LearnerGroup) -> None:
        """Do nothing: no policy is compared with the starting policy."""

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue with the row after the last row of a checkpoint."""
        self._cursor.load_state_dict(state["cursor"])

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the rows."""
        return {"cursor": self._cursor.state_dict()}

    def step(self, learner: LearnerGroup, step: int, watch: Stopwatch) -> tuple[dict[str, float], int]:
        """Do an optimizer step on the next rows."""
        learning, rows = self._settings.learner, self._cursor.next(self._settings.sft.batch_size)
        watch.start(Phase.LEARN)
        trained = sum(row.trained_tokens for row in rows)
        packed = batch(
            rows, denominator=float(trained), ranks=learner.ranks, microbatch_tokens=learning.microbatch_tokens
        )
        update = learner.step(packed)
        watch.start(None)
        return under_learner({**update, **packed.shares()}), sum(len(row.token_ids) for row in rows)

    def finish(self, learner: LearnerGroup, folder: Path) -> None:
        """Add nothing to the policy's folder."""


def _starting_policy(settings: SftConfig, *, make_anew: bool) -> str:
    new = settings.policy.new
    if new is None:
        return local_or_hub(settings.policy)
    random_policy = Path(settings.run.folder) / run_files.RANDOM_POLICY
    # An earlier attempt without a checkpoint may have made the policy from other settings, so make it again.
    if make_anew or not random_policy.is_dir():
        # The import of the models takes seconds.
        from grpo.policy.new import make_policy

        texts = []
        if new.tokenizer == "bpe":
            turns, _ = supervised_turns(settings.data)
            texts = ["".join(message["content"] for message in turn.messages) + turn.response for turn in turns]
        make_policy(new, texts, random_policy, settings.run.seed)
    return str(random_policy.absolute())
