"""The base class and the types of all parts of the configuration, and YAML as people write it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
# A verifier worker needs at least this much, in MiB.
WorkerMemory = Annotated[int, Field(ge=64)]
LogLevel = Literal["debug", "info", "warning", "error"]


class Section(BaseModel):
    """A part of the configuration. Unknown keys and numbers that are not finite are refused; values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )


def names_code(value: str) -> bool:
    """Whether a value names the user's code, as `module:function` or `file.py:function`, and not a built-in choice."""
    return ":" in value or value.endswith(".py")


@dataclass(frozen=True, slots=True)
class FunctionName:
    """Marks a text that is a built-in name, or the name of a user's function.

    Attributes:
        names: built-in names.
    """

    names: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of a text, with the check of its name."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The names, and a format that `grpo.config.reference` puts into words."""
        function = {"type": "string", "format": "function"}
        return {"anyOf": [{"enum": list(self.names)}, function]} if self.names else function

    def _checked(self, value: str) -> str:
        if value in self.names or names_code(value):
            return value
        near = difflib.get_close_matches(value, self.names, n=1, cutoff=0.5)
        raise PydanticCustomError(
            "function_name",
            "Input should be {expected}{hint}",
            {
                "expected": ", ".join([*map(repr, self.names), "module:function or file.py:function"]),
                "hint": f"; did you mean {near[0]!r}?" if near else "",
            },
        )


Function = Annotated[str, FunctionName()]


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_SIXTIES = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class _PlainLoader(yaml.SafeLoader):
    """Reads plain data only, as `yaml.safe_load` does."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        tag = str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
        return "tag:yaml.org,2002:str" if tag in _NUMBERS and _SIXTIES.fullmatch(value) else tag


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text. `24:00:00` is text, and not the number 86400 that YAML 1.1 reads there.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    return yaml.load(text, _PlainLoader)
