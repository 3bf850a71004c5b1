"""Check before a run whether this machine can isolate programs as the config's code verifiers require."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from grpo.terminal import literal
from rewards.deadlines import code_verifiers
from sandbox import IsolationError, IsolationLevel, Sandbox, bounds

if TYPE_CHECKING:
    from grpo.config import VerifierConfig


def isolation_table(verifiers: Sequence[VerifierConfig], table: Table) -> Table | None:
    """Fill `table` with the isolation of programs on this machine; return None if no verifier runs code.

    Raises:
        ValueError: this machine isolates less than a verifier requires. The message names the missing parts and how to
            get them.
    """
    running_code = code_verifiers(verifiers)
    if not running_code:
        return None
    name, strictest = max(running_code.items(), key=lambda item: item[1].level)
    try:
        with Sandbox(level=strictest.level) as sandbox:
            isolation = sandbox.isolation
    except IsolationError as problem:
        raise ValueError(f"verifier {name!r}: {problem}") from problem
    needed = f"{name!r} needs at least {strictest.level.name.lower()}"
    table.add_row("isolation", f"{isolation.level.name.lower()} on this machine; {needed}")
    table.add_row("in force", ", ".join(isolation.active))
    for item in isolation.missing:
        table.add_row("missing", f"{item.layer}: {item.reason}. To have it: {item.remedy}")
    for bound in bounds(isolation):
        kind, style = ("bound", "") if bound.is_bound else ("promise, not a bound", "yellow")
        table.add_row(bound.limit, literal(f"{kind}: {bound.how}", style))
    if isolation.level < IsolationLevel.FULL:
        table.add_row("", "docs/sandbox.md describes the levels")
    return table
