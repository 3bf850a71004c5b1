"""A run's prompts for training and evaluation, and the rows that the run leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from grpo import config
from grpo.data.bad_rows import lines_of
from grpo.data.drawing.curriculum import Curriculum
from grpo.data.drawing.cursor import Cursor, Drawing, Mixture
from grpo.data.prompts import PromptSet, check_prompt_count, gold_rows, load_prompts
from grpo.data.sources import load_sources, merged, parts_of, split_lines
from grpo.report.progress import Progress
from grpo.rollout.usable_rows import usable_rows
from grpo.types import Group, Phase, Prompt
from rewards.build import VerifierSpec
from rewards.selection import check_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RunPrompts:
    """The prompts of a run, without rows whose reference cannot be used."""

    training: PromptSet
    held_out: PromptSet | None
    cursor: Drawing[Prompt]
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
        self._environment = settings.environment is not None
        self._longest = longest = settings.rollout.max_prompt_tokens
        self._sources = load_sources(settings.data, tokenizer, max_tokens=longest)
        self._evaluated: PromptSet | None = None
        self._shares = settings.data.shares
        self._curricula: dict[str, Curriculum[Prompt]] = {}
        # Without a curriculum, no code reads these numbers.
        self._numbers: dict[str, int] = {}
        self._check_counts(settings, frozenset())
        if settings.evaluation and settings.evaluation.data:
            data = settings.evaluation.data
            self._evaluated = load_prompts(data, tokenizer, max_tokens=longest, where="evaluation.data")
        for prompts in self._parts().values():
            check_rows(specs, ((prompt.id, prompt.row) for prompt in prompts.prompts))
        rows = {name: gold_rows(prompts) for name, prompts in self._parts().items()}
        with progress.phase(Phase.DATA, "checking the gold answers"):
            self._usable = usable_rows(specs, rows, settings.verification)
        self._check_counts(settings, self._usable.names)
        self.training = merged([source.training for source in self._sources.values()])
        self.cursor = self._cursor(settings)
        held_out = [source.held_out for source in self._sources.values() if source.held_out]
        self.held_out = self._usable_part([self._evaluated] if self._evaluated else held_out)

    def _check_counts(self, settings: config.TrainConfig, without: frozenset[str]) -> None:
        """Refuse a source with too few prompts, apart from those with the ids `without`."""
        for name, share in self._shares.items():
            prompts = self._sources[name].training
            left_out = len(_places(prompts.prompts, without))
            check_prompt_count(prompts, settings.rollout, left_out, name=name, share=share)

    def _cursor(self, settings: config.TrainConfig) -> Drawing[Prompt]:
        cursors: dict[str, Drawing[Prompt]] = {}
        for name, source in self._sources.items():
            prompts, seed = source.training.prompts, settings.run.seed
            without = _places(prompts, self._usable.names)
            if settings.data.curriculum:
                curriculum = Curriculum(prompts, seed, settings.data.curriculum, without, name)
                self._curricula[name] = cursors[name] = curriculum
                self._numbers |= {prompt.id: at for at, prompt in enumerate(prompts)}
            else:
                cursors[name] = Cursor(prompts, seed, without, name)
        if not settings.data.sources:
            return cursors[""]
        return Mixture(cursors, {source.name: source.ratio for source in settings.data.sources})

    def _usable_part(self, sets: Sequence[PromptSet]) -> PromptSet | None:
        if not sets:
            return None
        held_out = merged(sets)
        kept = tuple(prompt for prompt in held_out.prompts if prompt.id not in self._usable.names)
        if not kept:
            where = "evaluation.data" if self._evaluated else "data.validation"
            raise ValueError(f"no row of {where} has a reference that can be used; correct the data")
        return replace(held_out, prompts=kept)

    def observe(self, groups: Sequence[Group]) -> dict[str, float]:
        """Tell the curriculum the groups of a step; return its metrics, summed over the sources."""
        metrics: dict[str, float] = {}
        for source, curriculum in self._curricula.items():
            of_source = [group for group in groups if group.prompt.source == source]
            measured = [(self._numbers[group.prompt.id], *solved(group)) for group in of_source]
            for name, value in curriculum.observe(measured).items():
                metrics[f"curriculum/{name}"] = metrics.get(f"curriculum/{name}", 0.0) + value
        return metrics

    def all(self) -> Iterator[Prompt]:
        """Yield the prompts of training and evaluation."""
        for part in self._parts().values():
            yield from part.prompts

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
            if prompts.contradictions and not self._environment:
                yield prompts.contradictions
        for name, source in self._sources.items():
            if name:
                count = len(source.training.prompts)
                yield f"source {name}: {count:,} prompts to train on, {self._shares[name]:.1%} of the run's prompts"
            yield from split_lines(name, source)
        yield from self._usable.lines

    def write_left_out(self, folder: Path) -> None:
        """Write the rows that are left out into the run's folder."""
        self._usable.write(folder)

    def _parts(self) -> dict[str, PromptSet]:
        parts = parts_of(self._sources)
        return parts | {"held-out": self._evaluated} if self._evaluated else parts


def solved(group: Group) -> tuple[int, int]:
    """Return the number of a group's correct completions, and of its completions with a reward."""
    known = [rollout for rollout in group.rollouts if rollout.reward is not None]
    return sum(rollout.correct for rollout in known), len(known)


def _places(prompts: Sequence[Prompt], ids: frozenset[str]) -> frozenset[int]:
    return frozenset(at for at, prompt in enumerate(prompts) if prompt.id in ids)
