"""Tasks and scorers of reasoning-gym. This package is an optional extra."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.answers.thinking import thinking_tags
from rewards.verdict import Status, Verdict, error, unparseable
from rewards.verifiers.exact import check_places, first_place

# For each place of `find`: the form of a completion that states an answer there.
_STATED = {"answer_tag": "<answer>{}</answer>", "boxed": "\\boxed{{{}}}"}
_MISSING = "reasoning-gym is not installed; install the extra with `pip install 'verigrpo[gym]'`"


class ReasoningGym:
    """Scores an answer with the scorer of the reasoning-gym task that its row came from.

    Args:
        task: name of the task, if all rows have the same task. By default each row names its task in
            `metadata["source_dataset"]`.
        find: places to look in; see `rewards.verifiers.exact.Exact`.
        pass_mark: least score whose status is `correct`. A smaller score is `scored`, and 0 is `wrong`. The task's
            scorer gives a score between 0 and 1.
        thinking: reasoning tags; see `rewards.verifiers.exact.Exact`.

    The prompt is a row from `rows`, whose column `entry` has everything that the scorer needs, or any row that has
    reasoning-gym's columns `question`, `answer` and `metadata`.

    Raises:
        ValueError: reasoning-gym is not installed.
    """

    def __init__(
        self,
        task: str | None = None,
        find: Sequence[str] = ("answer_tag", "boxed", "stated"),
        pass_mark: float = 1.0,
        thinking: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        self.task, self.find, self.pass_mark = task, check_places(find), pass_mark
        self.tags = thinking_tags(thinking)
        self._scorers: dict[str, Any] = {}
        _library()

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict of the task's scorer. It is an `error` if the row does not name its task."""
        entry = _entry(reference, prompt)
        task = self.task or entry["metadata"].get("source_dataset")
        if not task:
            return error("the row has no metadata['source_dataset'] and the verifier has no option task")
        answer = first_place(completion, self.find, self.tags)[1]
        if answer is None or not answer.strip():
            return unparseable(f"no answer found in {', '.join(self.find)}")
        if task not in self._scorers:
            self._scorers[task] = _library().get_score_answer_fn(task)
        score = float(self._scorers[task](answer, entry))
        if score >= self.pass_mark:
            return Verdict(score, Status.CORRECT, task)
        return Verdict(score, Status.SCORED if score > 0 else Status.WRONG, task)

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """Return completions that state the reference in the places of `find`; None if the task has several answers."""
        answer = "" if reference is None else str(reference)
        return (
            [_STATED.get(place, "The answer is {}").format(answer) for place in self.find] if answer.strip() else None
        )


def rows(task: str, size: int, seed: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """Generate `size` rows of a task. The setting `data.generator` can name this function.

    Yields:
        `question`, `answer` (empty if the task has no single answer) and `entry` (everything that the scorer needs).
        `entry` is JSON, because a table of rows would give each field of the metadata a single type and turn tuples
        into lists. Then some scorers would fail, and others would give another score.

    Raises:
        ValueError: reasoning-gym is not installed.
    """
    for entry in _library().create_dataset(task, size=size, seed=seed, **settings):
        answer = entry["answer"]
        yield {
            "question": entry["question"],
            "answer": "" if answer is None else str(answer),
            "entry": json.dumps(_to_plain(dict(entry))),
        }


def _entry(reference: Any, prompt: Mapping[str, Any]) -> dict[str, Any]:
    stored = prompt.get("entry")
    if isinstance(stored, str):
        entry: dict[str, Any] = _from_plain(json.loads(stored))
        return entry
    return {"question": prompt.get("question", ""), "answer": reference, "metadata": prompt.get("metadata") or {}}


def _to_plain(value: Any) -> Any:
    """A value for JSON: a tuple as `{"tuple": items}`, a dictionary as `{"dict": pairs}` to keep keys of any type."""
    if isinstance(value, dict):
        return {"dict": [[_to_plain(key), _to_plain(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_to_plain(item) for item in value]}
    if isinstance(value, list):
        return [_to_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_plain(item) for item in value]
    if isinstance(value, dict):
        ((kind, items),) = value.items()
        if kind == "tuple":
            return tuple(_from_plain(item) for item in items)
        return {_from_plain(key): _from_plain(item) for key, item in items}
    return value


def _library() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as problem:
        raise ValueError(_MISSING) from problem
