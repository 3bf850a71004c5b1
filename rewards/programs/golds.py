"""The solutions of a dataset row as completions, which a code verifier must find `correct`."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rewards.written_values import value_of

# The keys are columns with Python solutions. The values are other columns. If there are any, the row must
# have at least one of them, because the name of the key is common in other data sets too.
_COLUMNS: Mapping[str, Sequence[str]] = {
    "canonical_solution": (),  # HumanEval, BigCodeBench
    "code": ("test_list",),  # MBPP
    "solutions": ("input_output", "public_test_cases", "public_tests", "tests"),  # APPS, TACO, CodeContests, DeepCoder
    "gold_standard_solution": ("verification_info",),  # SYNTHETIC-1
}
# Columns with the head of the function, for solutions that consist only of the body of the function.
_STUBS = ("prompt", "code_prompt", "complete_prompt")
# Names of a language in rows with solutions in several languages. CodeContests uses the numbers.
_NAMES: Mapping[str, Collection[Any]] = {"cpp": ("cpp", "c++", 2), "python": ("python", "python3", 3)}
_BACKTICKS = re.compile(r"`{3,}")


def gold_programs(row: Mapping[str, Any], language: str, column: str | None = None) -> list[str] | None:
    """A row's solutions as completions, in fenced blocks; None if the row has no solution.

    Args:
        row: columns of the row.
        language: language of the programs.
        column: name of the column with the solutions, whose value is a text, a list of texts, or a list as JSON. For
            Python, None means a column of a known data set (`_COLUMNS`). The empty text means that there is no such
            column.
    """
    if column is None:
        known = _COLUMNS if language == "python" else {}
        column = next((name for name, tests in known.items() if row.get(name) and _beside(tests, row)), "")
    texts = _texts(row.get(column), _NAMES.get(language, (language,))) if column else []
    return [_fenced(_whole(text, row), language) for text in texts if text.strip()] or None


def _beside(tests: Sequence[str], row: Mapping[str, Any]) -> bool:
    return not tests or any(row.get(name) for name in tests)


def _texts(value: Any, languages: Collection[Any]) -> list[str]:
    value = value_of(value)
    if isinstance(value, Mapping):
        # CodeContests has two lists: the solutions, and the language of each solution.
        written, texts = value.get("language"), value.get("solution")
        if not isinstance(written, list) or not isinstance(texts, list):
            return []
        return [text for name, text in zip(written, texts, strict=False) if name in languages and isinstance(text, str)]
    if isinstance(value, (list, tuple)):
        return [text for text in value if isinstance(text, str)]
    return [value] if isinstance(value, str) else []


def _whole(text: str, row: Mapping[str, Any]) -> str:
    """A solution as a whole program: if it is only a body, the head of the function is added."""
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
        return text  # the solution already contains a fenced block
    # The fence must be longer than any fence in the program's strings.
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(text)), default=2))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
