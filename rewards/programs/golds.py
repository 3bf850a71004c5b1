"""The programs that a dataset row gives as right, as completions: a code verifier must find them `correct`."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Columns with Python solutions, and the columns of tests beside which so common a name means one.
_COLUMNS: Mapping[str, Sequence[str]] = {
    "canonical_solution": (),  # HumanEval, BigCodeBench
    "code": ("test_list",),  # MBPP
    "solutions": ("input_output", "public_test_cases", "public_tests"),  # APPS, TACO, CodeContests
}
# Columns with what stands before a solution that is only the body of a function.
_STUBS = ("prompt", "code_prompt", "complete_prompt")
# What a language is called where a row has solutions in several; the numbers are those of CodeContests.
_NAMES: Mapping[str, Collection[Any]] = {"cpp": ("cpp", "c++", 2), "python": ("python", "python3", 3)}
_BACKTICKS = re.compile(r"`{3,}")


def gold_programs(row: Mapping[str, Any], language: str, column: str | None = None) -> list[str] | None:
    """A row's solutions as completions, in fenced blocks; None when it has none.

    Args:
        row: the row's columns.
        language: what the programs must be written in.
        column: with the solutions: a text, a list of texts, or a list as JSON. None takes the one of HumanEval,
            BigCodeBench, MBPP, APPS, TACO or CodeContests where `language` is Python; the empty text takes none.
    """
    if column is None:
        known = _COLUMNS if language == "python" else {}
        column = next((name for name, tests in known.items() if row.get(name) and _beside(tests, row)), "")
    texts = _texts(row.get(column), _NAMES.get(language, (language,))) if column else []
    return [_fenced(_whole(text, row), language) for text in texts if text.strip()] or None


def _beside(tests: Sequence[str], row: Mapping[str, Any]) -> bool:
    return not tests or any(row.get(name) for name in tests)


def _texts(value: Any, languages: Collection[Any]) -> list[str]:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        # A program may begin with a bracket as well.
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, Mapping):
        # CodeContests has a list of languages beside the list of solutions.
        written, texts = value.get("language"), value.get("solution")
        if not isinstance(written, list) or not isinstance(texts, list):
            return []
        return [text for name, text in zip(written, texts, strict=False) if name in languages and isinstance(text, str)]
    if isinstance(value, (list, tuple)):
        return [text for text in value if isinstance(text, str)]
    return [value] if isinstance(value, str) else []


def _whole(text: str, row: Mapping[str, Any]) -> str:
    """A solution with the head of its function where it is only a body."""
    first = next(line for line in text.splitlines() if line.strip())
    if not first[0].isspace():
        return text
    programs = [f"{stub.rstrip()}\n{text}" for name in _STUBS if isinstance(stub := row.get(name), str)]
    return next((program for program in programs if _is_python(program)), text)


def _is_python(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _fenced(text: str, language: str) -> str:
    if text.lstrip().startswith("```"):
        return text  # a completion already
    # A longer fence than any in the program, whose strings may hold some.
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(text)), default=2))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
