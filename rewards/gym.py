"""reasoning-gym's tasks and scorers; the package is an optional extra."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.exact import check_places, find_text
from rewards.verdict import Status, Verdict, error, unparseable

_MISSING = "reasoning-gym is not installed; install the extra with `pip install 'verigrpo[gym]'`"


class ReasoningGym:
    """Scores an answer with the scorer of the reasoning-gym task that its row came from.

    Args:
        task: the task's name, for data of one task; by default each row names its own in
            `metadata["source_dataset"]`.
        find: the places to look; see `rewards.exact.Exact`.
        pass_mark: the least score that counts as `correct`; the score itself is the scorer's, from 0 to 1.

    The prompt is the row as `rows` gives it: its columns `question`, `answer` and `metadata` are the entry that the
    scorer wants.

    Raises:
        ValueError: reasoning-gym is not installed.
    """

    def __init__(
        self, task: str | None = None, find: Sequence[str] = ("answer_tag", "boxed", "stated"), pass_mark: float = 1.0
    ) -> None:
        self.task, self.find, self.pass_mark = task, check_places(find), pass_mark
        self._scorers: dict[str, Any] = {}
        _library()

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The scorer's word; `error` where the row does not say which task it is of."""
        metadata = prompt.get("metadata") or {}
        task = self.task or metadata.get("source_dataset")
        if not task:
            return error("the row has no metadata['source_dataset'] and the verifier no task")
        answer = find_text(completion, self.find)
        if answer is None or not answer.strip():
            return unparseable(f"no answer found in {', '.join(self.find)}")
        if task not in self._scorers:
            self._scorers[task] = _library().get_score_answer_fn(task)
        entry = {"question": prompt.get("question", ""), "answer": reference, "metadata": metadata}
        score = float(self._scorers[task](answer, entry))
        return Verdict(score, Status.CORRECT if score >= self.pass_mark else Status.WRONG, task)


def rows(task: str, size: int, seed: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """`size` rows of a task, as dictionaries with `question`, `answer` and `metadata`.

    Raises:
        ValueError: reasoning-gym is not installed.
    """
    for entry in _library().create_dataset(task, size=size, seed=seed, **settings):
        yield {"question": entry["question"], "answer": entry["answer"], "metadata": dict(entry["metadata"])}


def _library() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as problem:
        raise ValueError(_MISSING) from problem
