"""What is labelled: a prompt with two or more different answers, from a run or from a file."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from grpo.report.rollout_store import StoredGroup, read_groups, step_path, stored_steps
from rewards.verifier import PROBLEM_COLUMN


@dataclass(frozen=True, slots=True)
class LabelItem:
    """A prompt and its answers.

    Attributes:
        id: name that depends only on the prompt and the answers.
        prompt: question as preference rows need it, before any chat template.
        answers: two or more different answers. A policy wrote them: they may be hostile.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]

    @staticmethod
    def of(prompt: str, answers: tuple[str, ...]) -> LabelItem:
        """Make an item and its name."""
        content = json.dumps([prompt, sorted(answers)]).encode()
        return LabelItem(hashlib.sha256(content).hexdigest()[:16], prompt, answers)


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Items to label.

    Attributes:
        items: the items.
        equal: number of groups that are left out because all of their answers are equal.
        conversations: number of groups that are left out because their answers are conversations.
    """

    items: tuple[LabelItem, ...]
    equal: int = 0
    conversations: int = 0


def read_items(source: Path, *, show: int, limit: int | None, seed: int) -> LabelSet:
    """Read the groups of a run's folder, or the rows of a JSONL file, in an order that the seed decides.

    Args:
        source: folder of a run, or a file with rows of `prompt` and `answers`, a list of texts.
        show: largest number of answers of an item. A group with more different answers gives a random choice of them.
        limit: largest number of items; None is all.
        seed: seed of choice and order.

    Raises:
        ValueError: there is nothing to label, or a row has another form.
    """
    if show < 2:
        raise ValueError(f"show={show} answers cannot be compared; show 2 or more")
    groups = list(_of_file(source) if source.is_file() else _of_run(source))
    items, equal, conversations = {}, 0, 0
    for prompt, answers, talks in groups:
        different = list(dict.fromkeys(answers))
        conversations += talks
        equal += len(different) < 2 and not talks
        if talks or len(different) < 2:
            continue
        chosen = random.Random(f"{seed}\x00{prompt}\x00{different}").sample(different, min(show, len(different)))
        item = LabelItem.of(prompt, tuple(chosen))
        items[item.id] = item
    if not items:
        raise ValueError(
            f"{source} has nothing to label: {len(groups)} groups, of which {equal} have only equal answers and "
            f"{conversations} are conversations; an item needs a prompt with two different answers"
        )
    shuffled = sorted(items.values(), key=lambda item: hashlib.sha256(f"{seed}{item.id}".encode()).digest())
    return LabelSet(tuple(shuffled[:limit]), equal, conversations)


def prompts_of_run(run_dir: Path) -> list[tuple[str, list[str]]]:
    """The prompts of a run with their stored answers, without conversations and without empty answers.

    Raises:
        ValueError: the folder has no stored groups.
    """
    return [(prompt, answers) for prompt, answers, talks in _of_run(run_dir) if answers and not talks]


def _of_run(run_dir: Path) -> Iterator[tuple[str, list[str], bool]]:
    if not stored_steps(run_dir):
        raise ValueError(
            f"{run_dir} has no stored groups; give the folder of a run, its run.folder, or a file with rows of prompt "
            "and answers"
        )
    for prompt, group in groups_of_run(run_dir):
        talks = any(rollout.dialogue is not None for rollout in group.rollouts)
        yield prompt, [rollout.completion for rollout in group.rollouts if rollout.completion.strip()], talks


def groups_of_run(run_dir: Path) -> Iterator[tuple[str, StoredGroup]]:
    """Yield each stored group of a run with its question, as the row has it before any chat template."""
    for step in stored_steps(run_dir):
        table = pq.read_table(step_path(run_dir, step), columns=["group", "row"]).to_pylist()
        rows: dict[int, Mapping[str, Any]] = {each["group"]: json.loads(each["row"]) for each in table}
        for group in read_groups(run_dir, step):
            yield str(rows[group.index].get(PROBLEM_COLUMN, group.prompt)), group


def rows_of_file(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Read the JSON objects of a file, one on each line; return each with its place, `FILE:LINE`.

    Raises:
        ValueError: the file cannot be read, or a line holds no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ValueError(
            f"cannot read {path}: {problem.strerror}; give a file with rows as JSON lines, or a run's folder"
        ) from problem
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not UTF-8 text; expected rows as JSON lines") from problem
    rows = []
    # A text in JSON may hold the other ends of lines that `splitlines` knows.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise ValueError(f"{path}:{number}: the line is not JSON ({problem})") from problem
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}:{number}: expected an object with a prompt, got {line!r:.80}")
        rows.append((f"{path}:{number}", row))
    return rows


def _of_file(path: Path) -> Iterator[tuple[str, list[str], bool]]:
    for place, row in rows_of_file(path):
        prompt, answers = row.get("prompt"), row.get("answers")
        if not isinstance(answers, list) or not isinstance(prompt, str):
            raise ValueError(
                f"{place}: the row needs a text `prompt` and a list `answers`; it has the keys {', '.join(row)}"
            )
        if len(answers) < 2 or not all(isinstance(text, str) and text.strip() for text in answers):
            raise ValueError(f"{place}: the row has {len(answers)} answers; expected two or more texts")
        yield prompt, answers, False
