"""Values that a column of a data set holds as text: JSON, or Python's notation of the same value."""

from __future__ import annotations

import ast
import contextlib
import json
from typing import Any


def value_of(value: Any) -> Any:
    """Return the value that a text of an object or a list writes down; any other value unchanged.

    Most data sets write JSON. Some, for example PrimeIntellect's verifiable-coding-problems, write Python's notation
    (`{'fn_name': None}`), which is read as literals and never run.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(value.lstrip())
    return value
