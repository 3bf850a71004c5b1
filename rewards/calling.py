"""What a call of a user's function is about, and how such a function wants to be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What to say of a function that cannot be called as it is.
ADAPT = "{head}:\n    def adapted({ours}):\n        return {name}({arguments})"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a call is about: the completions of one prompt, of which there may be one only.

    Attributes:
        completions: the texts.
        reference: the row's reference answer.
        row: the row's columns.
        lists: further columns, which hold a value for each completion, such as the number of its tokens.
    """

    completions: Sequence[str]
    reference: Any
    row: Mapping[str, Any]
    lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def each(self, value: Any) -> list[Any]:
        """The same value for each completion."""
        return [value] * len(self.completions)


# The positional and the named arguments of one call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Signature:
    """How to call a function.

    Attributes:
        group: it takes all completions of a prompt at once and returns a list.
        arguments: from what the call is about to the arguments.
        returns: from what the function returned for these, to a value or (where `group`) a list of values.
        positional: how many of (completion, reference, columns) are all that it takes, by their places; 0 where it
            takes others. Such a function can be called without `arguments`.
    """

    group: bool
    arguments: Callable[[Batch], Arguments]
    returns: Callable[[Any], Any] = lambda value: value
    positional: int = 0


# By the name of a parameter: its value.
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
    """How to call a function whose parameters have these names.

    Args:
        function: the function.
        parameters: those of its parameters that no option has bound.
        values: what each name stands for.
        group: it judges all completions of a prompt at once.
        columns: where it has `**columns`, it gets those of the row as well.
        returns: see `Signature`.

    Raises:
        ValueError: it needs a parameter of another name; the message has the lines that adapt it.
    """
    required = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    strange = [one.name for one in required if one.name not in values and one.kind is not one.VAR_KEYWORD]
    if strange:
        ours = "completions, reference, prompt" if group else "completion, reference, prompt"
        raise ValueError(
            ADAPT.format(
                head=f"{name_of(function)} takes {', '.join(map(repr, strange))} beside {', '.join(values)}, and "
                "nobody says what that is. Give it in the verifier's options, or adapt the function in two lines",
                ours=ours,
                name=name_of(function),
                arguments=ours if columns else ", ".join(f"{one.name}=..." for one in required),
            )
        )
    wanted = [one.name for one in parameters if one.name in values]
    takes_columns = columns and any(one.kind is one.VAR_KEYWORD for one in parameters)
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
    """The name of a function, or of an object's class, behind bound options."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)
