"""What a config that rewards code needs of its other settings and of the machine, known before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from rewards.code import CodeVerifier
from sandbox import IsolationError, IsolationLevel, Sandbox

if TYPE_CHECKING:
    from grpo.config import VerifierConfig

_NAMES = ("code", "rewards.code:CodeVerifier", "rewards.code.CodeVerifier")


def code_verifiers(verifiers: Sequence[VerifierConfig]) -> dict[str, CodeVerifier]:
    """The code verifiers among the configured ones, by name.

    Raises:
        ValueError: options that the code verifier does not take.
    """
    found = {}
    for one in verifiers:
        if one.use in _NAMES:
            options = {name: value for name, value in one.options.items() if name != "bounds"}
            try:
                found[one.name] = CodeVerifier(**options)
            except (TypeError, ValueError) as problem:
                raise ValueError(f"verifiers: {one.name}: {problem}") from problem
    return found


def code_problems(verifiers: Sequence[VerifierConfig], deadline_s: float) -> list[str]:
    """Options that are none, and a deadline under which a program's own timeout would count as the machinery's."""
    try:
        found = code_verifiers(verifiers)
    except ValueError as problem:
        return [str(problem)]
    return [
        f"verification.deadline_s={deadline_s:g} could end the verifier {name!r} before a program has used up its own "
        f"program_seconds={verifier.program_seconds:g}, which would count as a failure of the machinery; give it "
        f"{verifier.deadline_seconds:g} or more, or lower program_seconds"
        for name, verifier in found.items()
        if deadline_s < verifier.deadline_seconds
    ]


def isolation_table(verifiers: Sequence[VerifierConfig], table: Table) -> Table | None:
    """Fill `table` with what would hold programs on this machine; None where no verifier runs code.

    Raises:
        ValueError: this machine gives less than a verifier demands; the message says what is missing and how to get it.
    """
    found = code_verifiers(verifiers)
    if not found:
        return None
    name, strictest = max(found.items(), key=lambda item: item[1].level)
    try:
        with Sandbox(level=strictest.level) as sandbox:
            isolation = sandbox.isolation
    except IsolationError as problem:
        raise ValueError(f"verifier {name!r}: {problem}") from problem
    needed = f"{strictest.level.name.lower()} is the least that {name!r} accepts"
    table.add_row("isolation", f"{isolation.level.name.lower()} on this machine; {needed}")
    table.add_row("in force", ", ".join(isolation.active))
    for item in isolation.missing:
        table.add_row("missing", f"{item.layer}: {item.reason}. To have it: {item.remedy}")
    if isolation.level < IsolationLevel.FULL:
        table.add_row("", "docs/sandbox.md tells what each level holds")
    return table
