"""The values of one call of a user's function, and how to pass them to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The end of an error message. It shows how to wrap a function that cannot be called as it is.
ADAPT = "{head}:\n    def adapted({parameters}):\n        return {name}({arguments})"


@dataclass(frozen=True, slots=True)
class Batch:
    """The values of one call: one or more completions of a prompt, and the prompt's row.

    Attributes:
        completions: texts of the completions.
        reference: reference answer of the row.
        row: columns of the row.
        lists: columns that have one value for each completion, such as the number of tokens.
    """

    completions: Sequence[str]
    reference: Any
    row: Mapping[str, Any]
    lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def each(self, value: Any) -> list[Any]:
        """Return a list with this value once for each completion."""
        return [value] * len(self.completions)


# The positional and the named arguments of one call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Signature:
    """How to call a function.

    Attributes:
        group: whether the function takes all completions of a prompt at once and returns a list.
        arguments: function that makes the arguments from a batch.
        returns: function that makes a score, or a list of scores for a group, from the returned value.
        positional: how many of the values (completion, reference, columns) the function takes by position. If this is
            1, 2 or 3, the function can be called without `arguments`. It is 0 for all other functions.
    """

    group: bool
    arguments: Callable[[Batch], Arguments]
    returns: Callable[[Any], Any] = lambda value: value
    positional: int = 0


# For each name of a parameter: a function that returns the value of this parameter for a batch.
Values = Mapping[str, Callable[[Batch], Any]]


def by_names(
    function: Callable[..., Any],
    parameters: Sequence[inspect.Parameter],
    values: Values,
    *,
    group: bool,
    columns: bool = False,
    returns: Callable[[Any], Any] = lambda value: value,
) -> Signature:
    """Return how to call a function whose parameters have these names.

    Args:
        function: the function.
        parameters: parameters of the function that no option has bound.
        values: value of each known name.
        group: whether the function judges all completions of a prompt at once.
        columns: whether a parameter `**columns` gets the columns of the row.
        returns: see `Signature`.

    Raises:
        ValueError: the function needs a parameter of an unknown name. The message shows the lines of code that adapt
            the function.
    """
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
    ]
    unknown = [
        parameter.name
        for parameter in required
        if parameter.name not in values and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if unknown:
        standard = "completions, reference, prompt" if group else "completion, reference, prompt"
        raise ValueError(
            ADAPT.format(
                head=f"{name_of(function)} takes {', '.join(map(repr, unknown))}, but only {', '.join(values)} have a "
                "known value. Give its value in the verifier's options, or adapt the function in two lines",
                parameters=standard,
                name=name_of(function),
                arguments=standard if columns else ", ".join(f"{parameter.name}=..." for parameter in required),
            )
        )
    wanted = [parameter.name for parameter in parameters if parameter.name in values]
    takes_columns = columns and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    bound = bound_names(function)

    def arguments(batch: Batch) -> Arguments:
        given = {name: values[name](batch) for name in wanted}
        if takes_columns:
            row = {**batch.row, **batch.lists}
            given = {name: value for name, value in row.items() if name not in bound} | given
        return (), given

    return Signature(group, arguments, returns)


def bound_names(function: Callable[..., Any]) -> set[str]:
    """Names of the parameters that a `functools.partial` has set."""
    return set(getattr(function, "keywords", None) or {}) if hasattr(function, "func") else set()


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function without its bound options, or the name of an object's class."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)
