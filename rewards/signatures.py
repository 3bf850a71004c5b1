"""Decides how to call a function that a user wrote, from the names of its parameters.

The project's own signatures are `(completion, reference[, prompt])` for one completion and
`(completions, reference[, prompt])` for a group. The signatures of other trainers are in `rewards.other_trainers`. A
function whose parameters would get wrong values is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.calling import ADAPT, Arguments, Batch, Signature, Values, bound_names, by_names, name_of
from rewards.other_trainers import REFERENCE_COLUMNS, UNKNOWN, read_other
from rewards.verifier import PROBLEM_COLUMN

# Names that show the meaning of a parameter, wherever it stands. There is one set for each position of the project's
# signature.
_COMPLETION = {"completion", "response", "generation", "prediction", "model_output", "model_response", "solution_str"}
_REFERENCE = {"reference", "ground_truth", "gold", "label", "target", "reference_answer", "gold_answer", "gold_label"}
_ROW = {"prompt", "row", "columns", "extra_info", "metadata", "info", "task"}
_QUESTION = {"question", "problem", "query", "instruction", "prompt_str", "data_source"}
_MISPLACED = (
    _REFERENCE | _ROW | _QUESTION | UNKNOWN,
    _COMPLETION | _ROW | _QUESTION | UNKNOWN,
    _COMPLETION | _REFERENCE | _QUESTION | UNKNOWN,
)
# A third parameter of one of these names gets the column of this name, as in the library `verifiers`.
_COLUMNS_THERE = ("info", "task")
_MEANT = ("the completion", "the reference answer", "the row's columns, as a mapping")

_GROUP: Values = {
    "completions": lambda batch: list(batch.completions),
    "reference": lambda batch: batch.reference,
    "prompt": lambda batch: {**batch.row, **batch.lists},
}


def read_signature(function: Callable[..., Any], conversational: bool = False) -> Signature:
    """Decide how a function is called.

    Parameters that options have bound are ignored. Parameters with a default keep their default, because a column of
    the row never sets an option.

    Args:
        function: function of the user, or an object that can be called.
        conversational: whether a function with TRL's signature always gets prompts and completions as lists of
            messages. If false, it gets lists only for rows whose column `prompt` is such a list.

    Raises:
        ValueError: the name of a parameter has no known meaning, or stands for a value that does not exist. The message
            shows the lines of code that adapt the function.
    """
    signature = inspect.signature(function)
    parameters = [parameter for name, parameter in signature.parameters.items() if name not in bound_names(function)]
    if other := read_other(function, parameters, conversational):
        return other
    if conversational:
        raise ValueError(
            f"conversational: true is for functions with TRL's signature, and {name_of(function)} has another "
            "signature; remove the option"
        )
    if any(parameter.name == "completions" for parameter in parameters):
        return by_names(function, parameters, _GROUP, group=True, columns=True)
    return _single(function, signature, parameters)


# One completion: (completion, reference[, prompt])


def _single(
    function: Callable[..., Any], signature: inspect.Signature, parameters: Sequence[inspect.Parameter]
) -> Signature:
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [parameter for at, parameter in enumerate(positional) if at < 2 or parameter.default is parameter.empty]
    any_number = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    takes_columns = not any_number and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for at, parameter in enumerate(required[:3]):
        if parameter.name in _MISPLACED[at]:
            raise ValueError(_refusal(function, required, at))
    required_by_name = [
        parameter.name
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    too_few = len(positional) < (1 if takes_columns else 2) and not any_number
    if too_few or len(required) > 3 or required_by_name:
        raise ValueError(
            f"{name_of(function)} must take (completion, reference) or (completion, reference, prompt); its signature "
            f"is {signature}. Give the values of its other parameters in the verifier's options"
        )
    count = 3 if any_number or (len(positional) >= 3 and _wants_row(positional[2])) else min(2, len(positional))
    taken = set(signature.parameters)
    third = positional[2] if count == 3 and len(positional) >= 3 else None
    column = third if third is not None and third.name in _COLUMNS_THERE else None

    def arguments(batch: Batch) -> Arguments:
        row = batch.row if column is None else _column(function, column, batch.row)
        given = (batch.completions[0], batch.reference, row)[:count]
        if not takes_columns:
            return given, {}
        columns = batch.row if count > 1 else {"reference": batch.reference, **batch.row}
        return given, {name: value for name, value in columns.items() if name not in taken}

    return Signature(False, arguments, positional=0 if takes_columns or column is not None else count)


def _column(function: Callable[..., Any], parameter: inspect.Parameter, row: Mapping[str, Any]) -> Any:
    """The column that a parameter names; its default if the row has no such column.

    Raises:
        ValueError: there is neither a column nor a default.
    """
    if parameter.name in row:
        return row[parameter.name]
    if parameter.default is not parameter.empty:
        return parameter.default
    raise ValueError(
        f"{name_of(function)} takes {parameter.name!r}, which is a column in the library verifiers, and the row has no "
        f"such column; it has {', '.join(row)}. To get all columns as a mapping, call the parameter prompt"
    )


def _wants_row(third: inspect.Parameter) -> bool:
    # If the third parameter has another default, it is an option that the config does not set.
    return third.default in (third.empty, None) or third.name in _ROW or isinstance(third.default, Mapping)


def _refusal(function: Callable[..., Any], required: Sequence[inspect.Parameter], at: int) -> str:
    return ADAPT.format(
        head=f"{name_of(function)} takes ({', '.join(parameter.name for parameter in required)}), but its parameter "
        f"{at + 1} gets {_MEANT[at]}, which is not what {required[at].name!r} means. Adapt it in two lines, "
        f"each value in its place",
        parameters="completion, reference, prompt",
        name=name_of(function),
        arguments=", ".join(_likely_value(parameter.name) for parameter in required),
    )


def _likely_value(name: str) -> str:
    if name in _COMPLETION or name in ("text", "output", "answer_text"):
        return "completion"
    if name in REFERENCE_COLUMNS:
        return "reference"
    if name == "prompt":  # other trainers pass the question as text
        return f"prompt[{PROBLEM_COLUMN!r}]"
    if name in UNKNOWN:  # a run has no such value
        return f"{name}=..."
    return "prompt" if name in _ROW and name not in _COLUMNS_THERE else f"prompt[{name!r}]"
