"""Judges of a configuration: their options, their time, and the folder of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rewards.judges.client import JudgeSettings, judge_settings

USE = "judge"
# Folder with the judges' answers, in the run's folder.
_CACHE = "judgements"
# What a verdict needs besides the judge's patience: reading, the cache, the start of a connection.
_MARGIN_S = 5.0


class ConfiguredVerifier(Protocol):
    """A verifier's line in a config."""

    @property
    def name(self) -> str: ...

    @property
    def use(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


def judges_of(verifiers: Sequence[ConfiguredVerifier]) -> dict[str, JudgeSettings]:
    """The judges of a configuration, by name.

    Raises:
        ValueError: the options of a judge are wrong.
    """
    judges = {}
    for verifier in verifiers:
        if verifier.use == USE:
            options = {name: value for name, value in verifier.options.items() if name not in ("bounds", "compare")}
            try:
                judges[verifier.name] = judge_settings(options)
            except ValueError as problem:
                raise ValueError(f"verifiers: {verifier.name}: {problem}") from problem
    return judges


def judge_problems(verifiers: Sequence[ConfiguredVerifier], deadline_s: float) -> list[str]:
    """Find wrong options, and a deadline that would end a judge before his patience does."""
    try:
        judges = judges_of(verifiers)
    except ValueError as problem:
        return [str(problem)]
    return [
        f"verification.deadline_s={deadline_s:g} could end the judge {name!r} before he has tried for "
        f"patience_s={judge.server.patience_s:g}; raise deadline_s to {judge.server.patience_s + _MARGIN_S:g} or more, "
        "or lower patience_s"
        for name, judge in judges.items()
        if deadline_s < judge.server.patience_s
    ]


def time_for_judges(verifiers: Sequence[ConfiguredVerifier]) -> float:
    """Return how long a verdict may take at most, in seconds, because of a judge; 0 without judges."""
    try:
        return max((judge.server.patience_s + _MARGIN_S for judge in judges_of(verifiers).values()), default=0.0)
    except ValueError:  # `judge_problems` reports it.
        return 0.0


def options_with_cache(verifier: ConfiguredVerifier, folder: str) -> dict[str, Any]:
    """Return the options of a verifier. A judge without the option `cache` keeps his answers in the run's folder."""
    default = {"cache": str(Path(folder) / _CACHE)} if verifier.use == USE else {}
    return {**default, **verifier.options}
