"""Whether a task's numbers are comparable with published numbers, and how the conditions of two evaluations differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config.conditions import published
from grpo.config.evaluation import EvalConfig, TaskConfig, TaskSamplingConfig
from grpo.evaluation.card import CARD
from grpo.evaluation.problems import load_task, task_names
from grpo.run.folder import changes

if TYPE_CHECKING:
    from grpo.evaluation.jobs import TaskJob

# What a local copy of the data may change: where the rows are, and the names of their columns.
_PLACES = {"hub", "path", "subset", "split", "revision", "files", "prompt", "reference", "limit"}
# Keys of a policy, not of its conditions: two policies have different ones.
_OF_THE_MODEL = ("served", "prompt.chat_template")
# Longest difference of rows that is shown with both values, in characters.
_LONGEST = 100


@dataclass(frozen=True, slots=True)
class Comparability:
    """How the conditions of an evaluation differ from a task's own conditions, or from those of `--like`.

    Attributes:
        task: name of the task.
        numbers: published numbers of the task's own conditions; empty if its file names none.
        like: name of the published conditions; None for the task's own conditions.
        differs: each difference, with both values.
        copy: local data and what they stand for; None if the data are those of the task.
    """

    task: str
    numbers: str
    like: str | None
    differs: tuple[str, ...]
    copy: str | None

    def line(self) -> str | None:
        """Return a sentence for the user; None if the task names no published numbers."""
        if not self.numbers:
            return None
        if self.differs:
            return f"{self.task}: NOT comparable with published numbers: {'; '.join(self.differs)}"
        like = f"; sampled like {self.like}" if self.like else ""
        return f"{self.task}: comparable with {self.numbers}{f' Only if {self.copy}' if self.copy else ''}{like}"

    def as_json(self) -> dict[str, Any]:
        """Return plain data for the card."""
        return {"numbers": self.numbers, "like": self.like, "differs": list(self.differs), "only_if": self.copy}


def comparability_of(task: TaskConfig, job: TaskJob, settings: EvalConfig) -> Comparability:
    """Compare the conditions of an evaluation with the task's file, and with `--like`.

    Args:
        task: task with the overrides of the command line, before its solved examples are in its template.
        job: the task with its problems and its sampling.
        settings: settings of the evaluation.
    """
    packaged = load_task(task.name) if task.name in task_names() else task
    base = packaged if packaged.comparable == task.comparable else task
    differs: list[str] = []
    if (size := base.size) and size != len(job.problems):
        differs.append(f"{len(job.problems):,} of {size:,} problems")
    elif not size and settings.limit:
        differs.append(f"only the first {len(job.problems):,} problems")
    differs += _of_sampling(job.sampling, base, settings.like)
    differs += _of_rows(task, base)
    if job.room and (short := job.room.shortened + job.room.without):
        differs.append(f"{short:,} of {len(job.problems):,} problems without room for max_tokens")
    if settings.is_endpoint and settings.endpoint.extra_body:
        differs.append(f"endpoint.extra_body {json.dumps(settings.endpoint.extra_body)}")
    paths = [*task.data.paths, *([task.shots.path] if task.shots and task.shots.path else [])]
    is_copy = bool(paths) and base.data.path is None
    copy = f"{' and '.join(map(str, paths))} has the rows of {base.data.hub}." if is_copy else None
    return Comparability(task.name, task.comparable, settings.like, tuple(differs), copy)


def _of_sampling(chosen: TaskSamplingConfig, base: TaskConfig, like: str | None) -> list[str]:
    wanted = base.sampling.model_copy(update=published(like).of_task(base.name) if like else {})
    names = [name for name in type(chosen).model_fields if getattr(chosen, name) != getattr(wanted, name)]
    if not like and chosen.max_tokens >= wanted.max_tokens:
        # A longer limit cuts fewer completions; the task's own limit is for models that do not think.
        names = [name for name in names if name != "max_tokens"]
    return [f"{name} {_shown(getattr(chosen, name))}, not {_shown(getattr(wanted, name))}" for name in names]


def _of_rows(task: TaskConfig, base: TaskConfig) -> list[str]:
    """Differences of the rows, the prompt and the verifier. A local copy may have other names of columns."""
    now, then = task.data.model_dump(mode="json"), base.data.model_dump(mode="json")
    is_copy = task.data.path is not None and base.data.path is None
    kept = {name for name in now if not (is_copy and name in _PLACES)}
    lines = changes({name: then[name] for name in kept}, {name: now[name] for name in kept}, "data")
    for name in ("window", "shots", "verifier"):
        left_out = {"path"} if name == "shots" else {"deadline_s", "memory_mib"}
        parts = [getattr(each, name) for each in (base, task)]
        before, after = (part and part.model_dump(mode="json", exclude=left_out) for part in parts)
        lines += changes(before, after, name)
    lines += changes({"when": dict(base.when)}, {"when": dict(task.when)}, "")
    # A template may be long and have several lines; its name is enough.
    return [line if len(line) <= _LONGEST else f"{line.partition(':')[0]} is another" for line in sorted(lines)]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else repr(value)


def different_conditions(first: Path, second: Path) -> list[str]:
    """Return how the conditions of two evaluations of a task differ, from the cards in their folders.

    The model is not a condition. An evaluation without a card says nothing.
    """
    cards = [folder / CARD for folder in (first, second)]
    if not all(path.is_file() for path in cards):
        return []
    before, after = (_conditions(json.loads(path.read_text(encoding="utf-8"))) for path in cards)
    return [line for line in changes(before, after) if not line.startswith(_OF_THE_MODEL)]


def _conditions(card: Mapping[str, Any]) -> dict[str, Any]:
    identity = {name: value for name, value in card["identity"].items() if name != "model"}
    return {**identity, "k": card.get("k"), "seeds": card.get("seeds")}
