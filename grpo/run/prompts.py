"""A run's prompts for training and evaluation, and the rows that the run leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from grpo import config
from grpo.data.bad_rows import lines_of
from grpo.data.cursor import Cursor
from grpo.data.prompts import PromptSet, check_prompt_count, gold_rows, load_prompts
from grpo.report.progress import Progress
from grpo.rollout.usable_rows import usable_rows
from grpo.types import Phase, Prompt
from rewards.build import VerifierSpec
from rewards.selection import check_rows


class RunPrompts:
    """The prompts of a run, without rows whose reference cannot be used."""

    training: PromptSet
    held_out: PromptSet | None = None
    cursor: Cursor[Prompt]
    """The run's position in the training prompts."""

    def __init__(
        self,
        settings: config.TrainConfig,
        tokenizer: PreTrainedTokenizerBase,
        specs: Sequence[VerifierSpec],
        progress: Progress,
    ) -> None:
        """Read the data and check its gold answers.

        Raises:
            ValueError: the data does not fit the config, a row has no verifier that judges it, too many rows have a
                reference that cannot be used, or no gold answer is `correct`.
        """
        self._longest = longest = settings.rollout.max_prompt_tokens
        self.training = load_prompts(settings.data, tokenizer, max_tokens=longest)
        check_prompt_count(self.training, settings.rollout)
        if settings.evaluation:
            data = settings.evaluation.data
            self.held_out = load_prompts(data, tokenizer, max_tokens=longest, where="evaluation.data")
        for prompts in self._parts().values():
            check_rows(specs, ((prompt.id, prompt.row) for prompt in prompts.prompts))
        rows = {name: gold_rows(prompts) for name, prompts in self._parts().items()}
        with progress.phase(Phase.DATA, "checking the gold answers"):
            self._usable = usable_rows(specs, rows, settings.verification)
        names = self._usable.names
        without = frozenset(at for at, prompt in enumerate(self.training.prompts) if prompt.id in names)
        check_prompt_count(self.training, settings.rollout, len(without))
        self.cursor = Cursor(self.training.prompts, settings.run.seed, without)
        if self.held_out:
            kept = tuple(prompt for prompt in self.held_out.prompts if prompt.id not in names)
            if not kept:
                raise ValueError("no row of evaluation.data has a reference that can be used; correct the data")
            self.held_out = replace(self.held_out, prompts=kept)

    @property
    def left_out(self) -> int:
        """Number of rows that are left out because their reference cannot be used."""
        return len(self._usable.left_out)

    def lines(self) -> Iterator[str]:
        """Yield the lines about the data that a run shows when it starts."""
        for name, prompts in self._parts().items():
            if prompts.dropped:
                yield (
                    f"{prompts.dropped} of {prompts.dropped + len(prompts.prompts)} {name} prompts are longer than "
                    f"rollout.max_prompt_tokens={self._longest} and are left out"
                )
            if prompts.left_out:
                yield f"{name} rows left out (on_bad_row=drop): {lines_of(prompts.left_out)}"
            yield from prompts.notes
        yield from self._usable.lines

    def write_left_out(self, folder: Path) -> None:
        """Write the rows that are left out into the run's folder."""
        self._usable.write(folder)

    def _parts(self) -> dict[str, PromptSet]:
        parts = {"training": self.training, "held-out": self.held_out}
        return {name: prompts for name, prompts in parts.items() if prompts}
