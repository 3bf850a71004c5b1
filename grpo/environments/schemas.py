"""Schemas of tools, as a chat template shows them to the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo.environments.spec import WorldSpec, choose_environment
from grpo.environments.tools import Tool
from grpo.environments.world import load_world


def tool_schemas(spec: WorldSpec, row: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Load and check all tools and environments, and return the schemas of the tools.

    The import of transformers takes seconds and much memory, so the driver calls this function, and no process of a
    conversation does.

    Args:
        spec: tools and environments of the run.
        row: row whose environment gives tools; None for the tools of all environments.

    Returns:
        Schemas as `transformers.utils.get_json_schema` makes them: the tools of the config, then the methods of the
        environments.

    Raises:
        ValueError: a tool or environment cannot be used, or environments have different tools of the same name.
    """
    loaded = load_world(spec)
    if row is None:
        tools = list(loaded.tools.values()) + [
            each for environment in loaded.environments for each in environment.tools.values()
        ]
    else:
        tools = list(loaded.tools_with(choose_environment(spec, row)).values())
    schemas: dict[str, dict[str, Any]] = {}
    for tool in tools:
        schema = _schema(tool)
        if schemas.setdefault(tool.name, schema) != schema:
            raise ValueError(
                f"two environments have different tools with the name {tool.name!r}; rename either method, because the "
                "policy reads the tools of all environments"
            )
    return list(schemas.values())


def _schema(tool: Tool) -> dict[str, Any]:
    # The import is slow, and the commands that show no schema do not need it.
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        schema: dict[str, Any] = get_json_schema(tool.function)
    except (DocstringParsingException, TypeHintParsingException, ValueError) as problem:
        raise ValueError(
            f"the tool {tool.name!r} cannot be described to the policy: {problem}. Give each argument a type and a "
            "line in the docstring, under 'Args:', as in 'query: Words to look for.'"
        ) from problem
    return schema
