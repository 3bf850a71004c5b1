"""Templates over the columns of a row: `{prompt}`, `{choices}`, `{starter_code}`, `{extra_info.hint}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo.data.cells import cell
from rewards.verifiers.choices import LETTERS

# Braces directly behind a letter belong to a formula, not to the template: \boxed{answer}.
_PLACEHOLDER = re.compile(r"\{prompt\}|(?<![A-Za-z\\])\{([A-Za-z_][A-Za-z0-9_. ]*)\}")


def fill(template: str, question: str, row: Mapping[str, Any]) -> str:
    """Return the template with its placeholders replaced once.

    `{prompt}` stands for the question, any other name for a column of the row. A list is written one item per line, the
    list `choices` with letters. Braces with another content stay as they are.
    """

    def value_of(match: re.Match[str]) -> str:
        if match[1] is None:
            return question
        value = cell(row, match[1])
        if value is None:
            return "" if match[1] in row else match[0]
        if match[1] == "choices" and isinstance(value, list):
            return "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, value, strict=False))
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value)

    return _PLACEHOLDER.sub(value_of, template)


def named_columns(template: str) -> list[str]:
    """Return the names in a template, without `prompt`."""
    return [match[1] for match in _PLACEHOLDER.finditer(template) if match[1]]
