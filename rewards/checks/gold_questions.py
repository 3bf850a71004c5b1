"""Questions that a dataset check asks a verifier, in the process that runs the verifier.

Reading a gold answer from an unknown source may take for ever or use all memory, so the checking process does not
read it. Instead this process sends questions to a pool of `questioned(specs)`, whose workers can be killed. The answer
to a question is a verdict. The pool also judges completions as usual.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from rewards import adapt
from rewards.adapt import Adapted
from rewards.build import VerifierSpec, build_verifier
from rewards.mathematics.nodes import Unreadable
from rewards.mathematics.reading.latex_text import normalise
from rewards.mathematics.reading.parse_answer import parse
from rewards.verdict import Status, Verdict, correct, wrong
from rewards.verifier import TOKENS_COLUMN, Verifier

# Names of parts of the answers: methods that the verifier has, and reasons why a gold completion has no verdict.
REFERENCE_PROBLEM, GOLD_COMPLETIONS = "reference_problem", "gold_completions"
NO_ANSWER, NONE_LEFT = "no_answer", "none_left"

_CHARACTERS_PER_TOKEN = 4


class Ask(StrEnum):
    """A question that is sent in place of a completion.

    This is a separate type, so that a completion with the same text is not taken for a question.
    """

    METHODS = "which methods do you have?"
    """Takes nothing."""
    REFERENCE = "can the reference be used?"
    """Takes a reference and its row. The answer is `correct`, or `wrong` with the reason."""
    GOLD = "is the gold completion correct?"
    """Takes (reference, number of the completion) and the row."""
    OTHER = "is another row's gold completion correct?"
    """Takes (reference, number of the completion, the other row's reference, the other row) and the row."""
    READING = "can the math parser read it?"
    """Takes a text. The answer is `correct`, or `wrong` with the reason."""


class Questioned:
    """A verifier that also answers questions.

    Args:
        use: name of the verifier, as in `VerifierSpec`.
        options: options of the verifier.
    """

    def __init__(self, use: str, options: Mapping[str, Any]) -> None:
        self._verifier: Verifier = build_verifier(use, options)

    def prepare(self) -> None:
        """Prepare the verifier."""
        adapt.prepare(self._verifier)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The verdict on a completion, or the answer to a question."""
        if not isinstance(completion, Ask):
            return self._judge(completion, reference, prompt)
        if completion is Ask.METHODS:
            names = (REFERENCE_PROBLEM, GOLD_COMPLETIONS)
            return Verdict(1.0, Status.CORRECT, "", {name: float(self._method(name) is not None) for name in names})
        if completion is Ask.READING:
            return reading(reference)
        if completion is Ask.REFERENCE:
            method = self._method(REFERENCE_PROBLEM)
            problem = method(reference, prompt) if method is not None else ""
            return wrong(problem) if problem else correct()
        if completion is Ask.GOLD:
            reference, number = reference
            completions = self._completions(reference, prompt)
            if completions and number >= len(completions):
                return _no_verdict(NONE_LEFT)
        else:
            reference, number, other_reference, other_prompt = reference
            completions = self._completions(other_reference, other_prompt)
        if not completions:
            return _no_verdict(NO_ANSWER)
        return self._judge(completions[min(number, len(completions) - 1)], reference, prompt)

    def _judge(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        # A run gives verifiers the completion's number of tokens. Here no tokenizer is known, so the number is
        # estimated.
        tokens = len(completion) // _CHARACTERS_PER_TOKEN + 1
        return self._verifier(completion, reference, {**prompt, TOKENS_COLUMN: tokens})

    def _completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        method = self._method(GOLD_COMPLETIONS)
        completions: list[str] | None = method(reference, prompt) if method is not None else None
        return completions

    def _method(self, name: str) -> Any:
        function = self._verifier.function if isinstance(self._verifier, Adapted) else self._verifier
        if isinstance(function, functools.partial):
            function = function.func  # the options are bound to a function; the methods are attributes of this function
        method = getattr(function, name, None)
        return method if callable(method) else None


def questioned(specs: Iterable[VerifierSpec]) -> tuple[VerifierSpec, ...]:
    """Return specs with the same names. The verifiers of these specs also answer questions."""
    return tuple(
        dataclasses.replace(
            spec,
            use=f"{__name__}:{Questioned.__name__}",
            options={"use": spec.use, "options": dict(spec.options)}
            | {name: value for name, value in spec.options.items() if name == "bounds"},
        )
        for spec in specs
    )


def _no_verdict(why: str) -> Verdict:
    return Verdict(0.0, Status.UNPARSEABLE, "", {why: 1.0})


def reading(text: str) -> Verdict:
    """`correct` when the math parser can read the text, else `wrong` with the reason."""
    try:
        parse(normalise(text))
    except Unreadable as problem:
        return wrong(str(problem))
    except RecursionError:
        return wrong("nested too deep")
    return correct()
