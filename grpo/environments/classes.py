"""The classes of environments: which methods are tools, how `reset` gets the row, and whether `step` answers."""

from __future__ import annotations

import difflib
import enum
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grpo.environments.spec import BUILT_IN, EnvironmentSpec, located_name
from grpo.environments.tools import Tool, make_tool
from rewards.named_code import locate
from rewards.named_files import names_a_file

# Methods and properties that have a meaning of their own, so they are no tools.
RESERVED = ("reset", "reward", "get_reward", "close", "over", "done")
_RESET = "def reset(self, row): return None"


class ResetStyle(enum.Enum):
    """How `reset` gets the row."""

    ROW = "row"
    """`reset(row)`: the row as a dictionary."""
    COLUMNS = "columns"
    """`reset(**columns)`: all columns by name, as TRL gives them."""
    NAMED = "named"
    """`reset(question, seed=0)`: the columns of these names; without parameters, nothing."""


@dataclass(frozen=True, slots=True)
class EnvironmentClass:
    """A class whose instances are environments.

    Attributes:
        name: name in the config, for messages.
        build: the class.
        options: keyword arguments of the class.
        style: how `reset` gets the row.
        columns: for `NAMED`: parameter of `reset` -> whether it is required.
        answers: whether `step` answers a turn without tool calls.
        tools: the public methods by name.
    """

    name: str
    build: Callable[..., Any]
    options: Mapping[str, Any]
    style: ResetStyle
    columns: Mapping[str, bool]
    answers: bool
    tools: Mapping[str, Tool]


def load_environment(spec: EnvironmentSpec, folder: str, key: str) -> EnvironmentClass:
    """Load and check the class of an environment.

    Args:
        spec: the environment in the config.
        folder: folder of relative file names; empty for the working folder.
        key: place in the config, for messages.

    Raises:
        ValueError: there is no such class, it does not take the options, or it cannot be an environment; the message
            has the remedy.
    """
    cls: Any = _locate(spec.use, folder, key)
    if not inspect.isclass(cls):
        raise ValueError(f"{key} is {type(cls).__name__}; name a class with a method `reset`")
    _check_options(cls, spec.options, key)
    if spec.use in BUILT_IN:
        cls(**spec.options)  # Checks the values of the options, and whether an optional package is there.
    reset = inspect.getattr_static(cls, "reset", None)
    if not inspect.isfunction(reset):
        raise ValueError(f"{key}: the class {cls.__name__} has no method `reset`, which begins a game; add `{_RESET}`")
    style, columns = _reset_style(reset)
    answers = style is not ResetStyle.COLUMNS and callable(getattr(cls, "step", None))
    if answers:
        _check_step(cls, key)
    _check_without_arguments(cls, key)
    reserved = (*RESERVED, "step") if answers else RESERVED
    # The functions of the class, not the attributes of an instance, which would evaluate properties. TRL does the same.
    methods = {
        name: function
        for name, function in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name not in reserved
    }
    tools = {name: _method_tool(cls, name, function, key) for name, function in methods.items()}
    if not answers and not tools:
        raise ValueError(
            f"{key}: the class {cls.__name__} has neither a public method, which would be a tool, nor a method "
            "`step(self, message: str)`, which would answer a turn; add either"
        )
    return EnvironmentClass(spec.use, cls, spec.options, style, columns, answers, tools)


def _locate(use: str, folder: str, key: str) -> Any:
    if use in BUILT_IN:
        return locate(BUILT_IN[use], key)
    name = located_name(use, folder)
    if ":" in use or names_a_file(name):
        return locate(name, key)
    near = difflib.get_close_matches(use, BUILT_IN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"{key}: no environment is called {use!r}; {hint}known: {', '.join(sorted(BUILT_IN))}; or give "
        "package.module:Class or file.py:Class"
    )


def _check_options(cls: type, options: Mapping[str, Any], key: str) -> None:
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return  # Classes of C extensions may have no signature. They refuse wrong options themselves.
    try:
        signature.bind(**options)
    except TypeError as problem:
        named = [each.name for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = f"it takes {', '.join(named)}" if named else "it takes no options"
        raise ValueError(f"{key} does not take the options {dict(options)}: {problem}; {taken}") from problem


def _reset_style(reset: Callable[..., Any]) -> tuple[ResetStyle, dict[str, bool]]:
    parameters = list(inspect.signature(reset).parameters.values())[1:]
    if any(each.name == "row" for each in parameters):
        return ResetStyle.ROW, {}
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return ResetStyle.COLUMNS, {}
    return ResetStyle.NAMED, {each.name: each.default is each.empty for each in parameters}


def _check_step(cls: Any, key: str) -> None:
    parameters = list(inspect.signature(cls.step).parameters.values())[1:]
    required = [each for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if len(required) > 1 or not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY,):
        raise ValueError(
            f"{key}: step{inspect.signature(cls.step)} must take the text of a turn and nothing else; write "
            "`def step(self, message: str) -> str`, or rename the method if it is a tool"
        )


def _check_without_arguments(cls: Any, key: str) -> None:
    """Refuse methods that are called without arguments, but need some."""
    for name in RESERVED[1:]:
        method = inspect.getattr_static(cls, name, None)
        if not inspect.isfunction(method):
            continue
        required = [
            each
            for each in list(inspect.signature(method).parameters.values())[1:]
            if each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        ]
        if required:
            raise ValueError(
                f"{key}: {name}{inspect.signature(method)} is called without arguments; give {required[0].name!r} a "
                "default, or rename the method if it is a tool"
            )


def _method_tool(cls: Any, name: str, function: Callable[..., Any], key: str) -> Tool:
    static = isinstance(inspect.getattr_static(cls, name), staticmethod)
    try:
        return make_tool(function, f"{key}: the method {cls.__name__}.{name}", method=not static)
    except ValueError as problem:
        raise ValueError(f"{problem} (a method whose name begins with '_' is no tool)") from problem
