"""Instructions that a program can check, such as "no commas" or "at least 300 words" (IFEval)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.answers.thinking import final_text, thinking_tags
from rewards.instructions.kinds import KINDS, Arguments
from rewards.instructions.language import MISSING, detector_factory
from rewards.verdict import Verdict, correct, error, scored, unparseable, wrong
from rewards.verifier import ReadsNoReference

Instruction = tuple[str, Arguments]


class Instructions(ReadsNoReference):
    """The share of a row's instructions that the completion follows; `correct` if it follows all.

    The reference is the list of the instructions' names, for example `["punctuation:no_comma"]`; a column has their
    arguments, in the same order. The names and arguments are those of IFEval (`rewards.instructions.kinds`).

    Args:
        arguments_column: column with a mapping of arguments for each instruction, as a list or as JSON text. Empty
            arguments are ignored. Without the column, no instruction has arguments.
        loose: whether the score is loose: an instruction is also followed if it is followed without the first line,
            the last line or both, or without asterisks.
        thinking: reasoning tags; see `rewards.verifiers.exact.Exact`.

    The verdict's parts are the number of `instructions`, how many of them are `followed` and `followed_loosely`, and
    whether all are followed loosely (`all_loosely`).
    """

    def __init__(
        self,
        arguments_column: str = "kwargs",
        loose: bool = False,
        thinking: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        self.arguments_column, self.loose, self.tags = arguments_column, loose, thinking_tags(thinking)

    def prepare(self) -> None:
        """Load the tables of langdetect, if it is installed."""
        detector_factory()

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict. It is an `error` if the row's instructions cannot be checked."""
        problem = self.reference_problem(reference, prompt)
        if problem:
            return error(problem)
        instructions = self._instructions(reference, prompt)
        text = final_text(completion, self.tags)
        followed = [_follows([text or ""], each) for each in instructions]
        loosely = [
            strict or _follows(_versions(text or ""), each) for strict, each in zip(followed, instructions, strict=True)
        ]
        parts = {
            "instructions": float(len(instructions)),
            "followed": float(sum(followed)),
            "followed_loosely": float(sum(loosely)),
            "all_loosely": float(all(loosely)),
        }
        if text is None:
            return unparseable("thinking never ended", **parts)
        counted = loosely if self.loose else followed
        if all(counted):
            return correct(f"{len(counted)} of {len(counted)} followed", **parts)
        broken = ", ".join(name for (name, _), follows in zip(instructions, counted, strict=True) if not follows)
        if any(counted):
            return scored(sum(counted) / len(counted), f"not followed: {broken}", **parts)
        return wrong(f"not followed: {broken}", **parts)

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Why the instructions cannot be checked; empty when they can."""
        if not isinstance(reference, (list, tuple)) or not reference:
            return f"the reference must be a list of instructions such as punctuation:no_comma, got {reference!r:.60}"
        arguments = _listed(prompt.get(self.arguments_column))
        if arguments is None or (arguments and len(arguments) != len(reference)):
            got = f"{len(arguments)} of them" if arguments else f"{prompt.get(self.arguments_column)!r:.60}"
            return f"column {self.arguments_column!r} must have arguments for {len(reference)} instructions, got {got}"
        for name, given in self._instructions(reference, prompt):
            if name not in KINDS:
                near = difflib.get_close_matches(str(name), KINDS, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(KINDS)}"
                return f"no instruction is called {name!r:.60}{hint}"
            if problem := KINDS[name].problem(given):
                return f"{name}: {problem}"
            if KINDS[name].needs_language and detector_factory() is None:
                return f"{name} {MISSING}"
        return ""

    def _instructions(self, reference: Sequence[str], prompt: Mapping[str, Any]) -> list[Instruction]:
        arguments = _listed(prompt.get(self.arguments_column)) or [{}] * len(reference)
        return list(zip(reference, arguments, strict=True))


def _listed(column: Any) -> list[Arguments] | None:
    """The arguments without empty values; None if the column has another form."""
    if isinstance(column, str):
        try:
            column = json.loads(column)
        except (ValueError, RecursionError):
            return None
    if column is None:
        return []
    if not isinstance(column, (list, tuple)) or not all(each is None or isinstance(each, Mapping) for each in column):
        return None
    return [{name: value for name, value in (each or {}).items() if value is not None} for each in column]


def _follows(versions: Sequence[str], instruction: Instruction) -> bool:
    name, arguments = instruction
    return any(KINDS[name].follows(text, arguments) for text in versions if text.strip())


def _versions(text: str) -> list[str]:
    """The text without its first line, its last line, both or neither, each with and without asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(each.replace("*", "") for each in cut)]
