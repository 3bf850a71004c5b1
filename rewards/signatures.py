"""How a function of the user's wants to be called, read from the names of its parameters.

The project's own signatures are `(completion, reference[, prompt])` for one completion and
`(completions, reference[, prompt])` for a group; `rewards.other_trainers` knows those of other trainers. A function
whose parameters would get the wrong values is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.calling import ADAPT, Arguments, Batch, Signature, Values, bound_names, by_names, name_of
from rewards.other_trainers import REFERENCE_COLUMNS, UNKNOWN, read_other
from rewards.verifier import PROBLEM_COLUMN

# Names that say what a parameter means, wherever it stands: for each position of our own signature.
_COMPLETION = {"completion", "response", "generation", "prediction", "model_output", "model_response", "solution_str"}
_REFERENCE = {"reference", "ground_truth", "gold", "label", "target", "reference_answer", "gold_answer", "gold_label"}
_ROW = {"prompt", "row", "columns", "extra_info", "metadata", "info", "task"}
_QUESTION = {"question", "problem", "query", "instruction", "prompt_str", "data_source"}
_MISPLACED = (
    _REFERENCE | _ROW | _QUESTION | UNKNOWN,
    _COMPLETION | _ROW | _QUESTION | UNKNOWN,
    _COMPLETION | _REFERENCE | _QUESTION | UNKNOWN,
)
_MEANT = ("the completion", "the reference answer", "the row's columns, as a mapping")

_GROUP: Values = {
    "completions": lambda batch: list(batch.completions),
    "reference": lambda batch: batch.reference,
    "prompt": lambda batch: {**batch.row, **batch.lists},
}


def read_signature(function: Callable[..., Any], conversational: bool = False) -> Signature:
    """Decide how a function is called.

    Parameters that options have bound are no longer looked at, and those with a default keep it: a row's column is
    never taken for an option.

    Args:
        function: the user's function, or an object that can be called.
        conversational: a function with TRL's signature gets prompts and completions as lists of messages, as it also
            does for a row whose column `prompt` is such a list.

    Raises:
        ValueError: the names of the parameters do not say what they mean, or say something that is not there; the
            message has the lines that adapt the function.
    """
    signature = inspect.signature(function)
    parameters = [one for name, one in signature.parameters.items() if name not in bound_names(function)]
    if other := read_other(function, parameters, conversational):
        return other
    if conversational:
        raise ValueError(
            f"conversational: true is for functions with TRL's signature, and {name_of(function)} has another; "
            "take the option out"
        )
    if any(one.name == "completions" for one in parameters):
        return by_names(function, parameters, _GROUP, group=True, columns=True)
    return _single(function, signature, parameters)


# One completion: (completion, reference[, prompt])


def _single(
    function: Callable[..., Any], signature: inspect.Signature, parameters: Sequence[inspect.Parameter]
) -> Signature:
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = [one for at, one in enumerate(positional) if at < 2 or one.default is one.empty]
    any_number = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    takes_columns = not any_number and any(one.kind is one.VAR_KEYWORD for one in parameters)
    for at, one in enumerate(required[:3]):
        if one.name in _MISPLACED[at]:
            raise ValueError(_refusal(function, required, at))
    left = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    too_few = len(positional) < (1 if takes_columns else 2) and not any_number
    if too_few or len(required) > 3 or left:
        raise ValueError(
            f"{name_of(function)} must take (completion, reference) or (completion, reference, prompt); its signature "
            f"is {signature}. Give the values of its other parameters in the verifier's options"
        )
    count = 3 if any_number or (len(positional) >= 3 and _wants_row(positional[2])) else min(2, len(positional))
    taken = set(signature.parameters)

    def arguments(batch: Batch) -> Arguments:
        given = (batch.completions[0], batch.reference, batch.row)[:count]
        if not takes_columns:
            return given, {}
        columns = batch.row if count > 1 else {"reference": batch.reference, **batch.row}
        return given, {name: value for name, value in columns.items() if name not in taken}

    return Signature(False, arguments, positional=0 if takes_columns else count)


def _wants_row(third: inspect.Parameter) -> bool:
    # A third parameter that has another default is an option which the config does not set.
    return third.default in (third.empty, None) or third.name in _ROW or isinstance(third.default, Mapping)


def _refusal(function: Callable[..., Any], required: Sequence[inspect.Parameter], at: int) -> str:
    return ADAPT.format(
        head=f"{name_of(function)} takes ({', '.join(one.name for one in required)}), but its parameter {at + 1} gets "
        f"{_MEANT[at]}, which is not what {required[at].name!r} means. Adapt it in two lines, each value in its place",
        ours="completion, reference, prompt",
        name=name_of(function),
        arguments=", ".join(_likely_value(one.name) for one in required),
    )


def _likely_value(name: str) -> str:
    if name in _COMPLETION or name in ("text", "output", "answer_text"):
        return "completion"
    if name in REFERENCE_COLUMNS:
        return "reference"
    if name == "prompt":  # another trainer's: the question as a text
        return f"prompt[{PROBLEM_COLUMN!r}]"
    if name in UNKNOWN:  # no run has it
        return f"{name}=..."
    return "prompt" if name in _ROW else f"prompt[{name!r}]"
