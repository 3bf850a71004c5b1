"""Tools: typed functions with docstrings. The policy's arguments are checked before a function gets them."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, Required

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from grpo.environments.spec import SANDBOX_TOOLS, located_name
from grpo.messages import NAME
from rewards.named_code import locate
from rewards.named_files import names_a_file

_EXAMPLE = 'def search(query: str) -> str: """Search the notes.\\n\\nArgs:\\n    query: Words to look for."""'
_MOST_PROBLEMS, _LONGEST = 5, 80


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the policy may call.

    Attributes:
        name: name of the function.
        function: the function; for an environment's tool, the class's function, which takes the environment first.
        arguments: checks the arguments of a call.
        takes: names and types of the arguments, for messages to the policy.
    """

    name: str
    function: Callable[..., Any]
    arguments: TypeAdapter[dict[str, Any]]
    takes: str

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call as the function's types say.

        Raises:
            ValueError: an argument is missing, unknown, or has the wrong type. The message is a sentence for the
                policy.
        """
        try:
            # JSON knows no tuples, sets and enumerations, so pydantic's rules for JSON apply, and they are strict: the
            # text "3" is no number.
            return self.arguments.validate_json(json.dumps(arguments))
        except ValidationError as problem:
            errors = problem.errors(include_url=False, include_context=False, include_input=False)
            sentences = [_sentence(each) for each in errors[:_MOST_PROBLEMS]]
            raise ValueError(f"{self.name}: {'; '.join(sentences)}. {self.takes}") from problem


def load_tool(use: str, folder: str, key: str) -> Tool:
    """Load a function that a config names as a tool.

    Args:
        use: `package.module:function` or `file.py:function`.
        folder: folder of relative file names; empty for the working folder.
        key: place in the config, for messages.

    Raises:
        ValueError: there is no such function, or it cannot be a tool; the message has the remedy.
    """
    name = located_name(use, folder)
    if ":" not in use and not names_a_file(name):
        near = difflib.get_close_matches(use, SANDBOX_TOOLS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{key} is not built in; {hint}known: {', '.join(SANDBOX_TOOLS)}; or give package.module:function or "
            "file.py:function"
        )
    function = locate(name, key)
    if inspect.isclass(function):
        raise ValueError(f"{key} is a class; name a function, or put the class into `environment`, for its state")
    if not inspect.isroutine(function):
        raise ValueError(
            f"{key} is an object of {type(function).__name__}; write a function `def name(...)` that calls it"
        )
    return make_tool(function, key)


@functools.lru_cache(maxsize=256)
def make_tool(function: Callable[..., Any], key: str, method: bool = False) -> Tool:
    """Make a tool of a typed function with a docstring.

    Args:
        function: the function.
        key: name of the function for messages.
        method: whether the first parameter is the environment.

    Raises:
        ValueError: the function cannot be a tool; the message has the remedy.
    """
    name = getattr(function, "__name__", "")
    if not NAME.fullmatch(name):
        raise ValueError(f"{key} has the name {name!r}; write `def name(...)` with 1 to 64 letters, digits or '_'")
    if not (inspect.getdoc(function) or "").strip():
        raise ValueError(
            f"{key} has no docstring, from which the policy learns what the tool does; for example {_EXAMPLE}"
        )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError) as problem:
        raise ValueError(
            f"the types of {key} cannot be read ({problem}); import their names in its module"
        ) from problem
    fields: dict[str, Any] = {}
    parameters = list(inspect.signature(function).parameters.values())[int(method) :]
    for parameter in parameters:
        _require_usable(parameter, hints, key)
        required = parameter.default is parameter.empty
        wrapper: Any = Required if required else NotRequired
        fields[parameter.name] = wrapper[hints[parameter.name]]
    # Names that are known only at run time, which mypy cannot follow.
    typed_dict: Any = TypedDict
    arguments = typed_dict("arguments", fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    try:
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(arguments)
    except (PydanticUserError, TypeError) as problem:
        first = str(problem).partition("\n")[0].partition(". Set ")[0]
        raise ValueError(
            f"{key} has a type that arguments in JSON cannot have ({first}); use str, int, float, bool, list, dict, "
            "Literal, or a dataclass of them"
        ) from problem
    return Tool(name, function, adapter, _takes(parameters, hints))


def _require_usable(parameter: inspect.Parameter, hints: Mapping[str, Any], key: str) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise ValueError(
            f"{key} takes {parameter}, but the policy must know each argument; write them with their types"
        )
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise ValueError(f"{key}: the policy gives arguments by name, but {parameter.name!r} stands before '/'")
    if parameter.name not in hints:
        raise ValueError(f"{key}: the argument {parameter.name!r} has no type; write for example {parameter.name}: str")


def _takes(parameters: list[inspect.Parameter], hints: Mapping[str, Any]) -> str:
    if not parameters:
        return "It takes no arguments"
    named = []
    for each in parameters:
        # A class such as `str` has a name; a type such as `list[str]` is written as it is.
        hint = hints[each.name]
        written = inspect.formatannotation(hint)
        named.append(f"{each.name} ({written}{'' if each.default is each.empty else ', optional'})")
    return f"It takes {', '.join(named)}"


def _sentence(error: Any) -> str:
    # The names are the policy's words, and may be long.
    place = ".".join(str(part) for part in error["loc"])[:_LONGEST]
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "extra_forbidden":
        return f"{place} is unknown"
    message = error["msg"][:200]
    return f"{place}: {message[:1].lower()}{message[1:]}" if place else message
