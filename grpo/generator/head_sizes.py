"""The head sizes of vLLM's attention on a CPU, read in vLLM's source. Importing vLLM would take seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

_FILE, _FUNCTION = Path("v1", "attention", "backends", "cpu_attn.py"), "get_supported_head_sizes"


@functools.cache
def cpu_head_sizes() -> tuple[int, ...]:
    """Return the head sizes that vLLM's attention supports on a CPU; nothing if they cannot be read."""
    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (file := Path(folder, _FILE)).is_file():
            return head_sizes_in(file.read_text(encoding="utf-8"))
    return ()


def head_sizes_in(source: str) -> tuple[int, ...]:
    """Return the list of integers that the backend's function returns in this source; nothing if there is none."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.name != _FUNCTION:
            continue
        for returned in ast.walk(node):
            if isinstance(returned, ast.Return) and isinstance(returned.value, ast.List):
                values = [element.value for element in returned.value.elts if isinstance(element, ast.Constant)]
                return tuple(value for value in values if isinstance(value, int))
    return ()
