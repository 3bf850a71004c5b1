"""What a tool returned, or why it failed, as text for the policy."""

from __future__ import annotations

import json
import numbers
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# Characters of all results of a turn. A conversation shows far fewer; the bound keeps a result of 10 MB from memory.
MOST_CHARACTERS = 1_000_000
_LONGEST_REASON = 2_000
NOTHING = "(no result)"


def result_text(value: Any, most: int = MOST_CHARACTERS) -> str:
    """Return a tool's result as text.

    Text stays as it is. Numbers, truth values, lists and dictionaries become JSON.

    Args:
        value: what the tool returned.
        most: largest number of characters. A longer result is cut, with a mark at its end.

    Raises:
        ValueError: the value is no text and no JSON, for example bytes. The message is a sentence for the policy.
    """
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return cut(value, most)
    if not isinstance(value, (bool, int, float, list, tuple, dict, numbers.Number)):
        raise ValueError(f"the tool returned {type(value).__name__}, which is no text")
    parts, length = [], 0
    try:
        for part in json.JSONEncoder(ensure_ascii=False, default=_plain).iterencode(value):
            parts.append(part[: most + 1])
            length += len(part)
            if length > most:
                break
    except (TypeError, ValueError, RecursionError) as problem:
        raise ValueError(f"the tool returned {type(value).__name__}, which cannot be written as JSON") from problem
    return cut("".join(parts), most)


def cut(text: str, most: int) -> str:
    """Return the text; if it has more than `most` characters, its beginning with a mark."""
    return text if len(text) <= most else f"{text[:most]}\n... (cut: the result has more than {most:,} characters)"


def raised_text(problem: BaseException) -> str:
    """Return the name and message of a tool's exception, without traceback and without paths of this machine."""
    if isinstance(problem, OSError) and problem.strerror:
        # The whole message would name a file.
        return f"{type(problem).__name__}: {problem.strerror}"
    # The user's exception may fail even while it is written; this function does not.
    # Lines of a syntax error, which quote a file, stand before the message, and notes behind it.
    lines = traceback.format_exception_only(type(problem), problem)
    message = next(line for line in lines if not line.startswith(" ")).strip()
    # Python writes the module before the name of an exception's class.
    name = re.compile(rf"^{re.escape(type(problem).__module__)}\.(?={re.escape(type(problem).__qualname__)})")
    return cut(_without_paths(name.sub("", message)), _LONGEST_REASON)


def _without_paths(text: str) -> str:
    folders = {str(Path.home()), os.getcwd(), sys.prefix, sys.base_prefix, tempfile.gettempdir(), *sys.path}
    # A module of a user may lie anywhere, and its path may stand in the message of an import.
    folders |= {os.path.dirname(module.__file__ or "") for module in _named_files()}
    known = sorted((re.escape(each) for each in folders if each.startswith("/") and len(each) > 1), key=len)
    return re.sub(rf"(?:{'|'.join(reversed(known))})(?:/[^\s'\"():,;]*)?", _last_part, text)


def _named_files() -> list[Any]:
    return [module for name, module in list(sys.modules.items()) if name.startswith("grpo_verifier_file_")]


def _last_part(match: re.Match[str]) -> str:
    return match[0].rstrip("/").rpartition("/")[2]


def _plain(value: Any) -> Any:
    """Return a number of numpy as Python's number."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(type(value).__name__)
