"""Reads what people write for a judge: a rubric, and the principles of a constitution."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_KEYS = ("question", "choices", "correct", "system", "show_reference")


@dataclass(frozen=True, slots=True)
class Rubric:
    """What a judge is asked about an answer, and what his choices are worth.

    Attributes:
        question: question to the judge.
        choices: score of each choice.
        correct: choices whose verdict is `correct`; the other choices are then `wrong`. If empty, every verdict is
            `scored`.
        system: further text for the judge's system message.
        show_reference: whether the judge reads the reference of the row.
    """

    question: str
    choices: Mapping[str, float]
    correct: tuple[str, ...] = ()
    system: str = ""
    show_reference: bool = False


def read_rubric(path: str | Path, choices: Mapping[str, Any] | None = None) -> Rubric:
    """Read a rubric from a YAML file.

    Args:
        path: the file.
        choices: scores of the choices, in place of those of the file.

    Raises:
        ValueError: the file cannot be read, or a key of it is missing or has a wrong value.
    """
    given = _load(path, "rubric")
    if not isinstance(given, Mapping):
        raise ValueError(f"rubric {path} holds {type(given).__name__}; expected the keys {', '.join(_KEYS)}")
    if unknown := [key for key in given if key not in _KEYS]:
        raise ValueError(f"rubric {path} has an unknown key {unknown[0]!r}; it may have {', '.join(_KEYS)}")
    question = given.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"rubric {path} has no text in `question`; write what the judge must decide about an answer")
    scores = _scores(path, given.get("choices") if choices is None else choices)
    correct = given.get("correct") or []
    if not isinstance(correct, list) or any(name not in scores for name in correct):
        raise ValueError(f"rubric {path}: correct must list names of choices ({', '.join(scores)}), got {correct!r}")
    system, show = given.get("system") or "", given.get("show_reference", False)
    if not isinstance(system, str) or not isinstance(show, bool):
        raise ValueError(f"rubric {path}: system must be text and show_reference true or false")
    return Rubric(question.strip(), scores, tuple(correct), system.strip(), show)


def _scores(path: str | Path, choices: Any) -> dict[str, float]:
    if not choices:
        raise ValueError(
            f"rubric {path} has no choices, so no answer of the judge has a score; add two or more, for example "
            "choices: {good: 1, middling: 0.5, bad: 0}"
        )
    if not isinstance(choices, Mapping) or len(choices) < 2:
        raise ValueError(f"rubric {path}: choices must be two or more names with scores, got {choices!r:.200}")
    for name, score in choices.items():
        if not isinstance(name, str):
            raise ValueError(
                f"rubric {path}: the choice {name!r} is not text; YAML reads yes, no and numbers as other values, so "
                'put the name into quotes: {"yes": 1, "no": 0}'
            )
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"rubric {path}: the choice {name!r} has the score {score!r}; expected a finite number")
    return {name: float(score) for name, score in choices.items()}


def read_principles(path: str | Path) -> tuple[str, ...]:
    """Read the principles of a constitution: a YAML list of texts, or the key `principles` with such a list.

    Raises:
        ValueError: the file cannot be read, has no principle, or has an item that is not text.
    """
    given = _load(path, "principles")
    if isinstance(given, Mapping):
        given = given.get("principles")
    if not given:
        raise ValueError(f"principles {path} is empty; write a YAML list with a principle in each line: - Be honest.")
    if not isinstance(given, list) or not all(isinstance(each, str) and each.strip() for each in given):
        raise ValueError(f"principles {path} must be a YAML list of texts, got {given!r:.200}")
    return tuple(each.strip() for each in given)


def draw_principle(principles: Sequence[str], seed: int, *texts: str) -> str:
    """Draw the principle for some texts. The same seed and texts, in whatever order, draw the same principle."""
    return random.Random("\x00".join([str(seed), *sorted(texts)])).choice(principles)


def _load(path: str | Path, what: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise ValueError(f"{what}: cannot read {path}: {problem.strerror}; give the path of a YAML file") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"{what}: {path} is not YAML: {' '.join(str(problem).split())}") from problem
