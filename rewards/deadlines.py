"""Verifiers that set a time of their own: programs that run, and judges that are asked. Their time and the deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rewards.judges.client import JudgeSettings, judge_settings
from rewards.verifiers.code import CodeVerifier

JUDGE = "judge"
_CODE = frozenset(
    {"code", *(f"{module}{dot}CodeVerifier" for module in ("rewards.verifiers.code", "rewards.code") for dot in ":.")}
)
# What a judge's verdict needs besides the judge's patience: reading, the cache, the start of a connection.
_MARGIN_S = 5.0

Built = TypeVar("Built")


class ConfiguredVerifier(Protocol):
    """A verifier's line in a config."""

    @property
    def name(self) -> str: ...

    @property
    def use(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class OwnTime:
    """The time that a verifier's own options give it.

    Attributes:
        limit: option that bounds the time, with its value.
        needed_s: longest time of a verdict, in seconds.
    """

    limit: str
    needed_s: float


def code_verifiers(verifiers: Sequence[ConfiguredVerifier]) -> dict[str, CodeVerifier]:
    """Build the code verifiers of a configuration; return them by name.

    Raises:
        ValueError: the code verifier does not take these options.
    """
    return _built(verifiers, _CODE, ("bounds",), lambda options: CodeVerifier(**options))


def judges_of(verifiers: Sequence[ConfiguredVerifier]) -> dict[str, JudgeSettings]:
    """Read the judges of a configuration; return their settings by name.

    Raises:
        ValueError: the options of a judge are wrong.
    """
    return _built(verifiers, frozenset({JUDGE}), ("bounds", "compare"), judge_settings)


def deadline_problems(verifiers: Sequence[ConfiguredVerifier], deadline_s: float) -> list[str]:
    """Find wrong options, and a deadline that would end a program or a judge before its own limit does."""
    try:
        times = _own_times(verifiers)
    except ValueError as problem:
        return [str(problem)]
    return [
        f"verification.deadline_s={deadline_s:g} could end the verifier {name!r} before it reaches {own.limit}; this "
        f"would count as a failed verdict; raise deadline_s to {own.needed_s:g} or more, or lower "
        f"{own.limit.split('=')[0]}"
        for name, own in times.items()
        if deadline_s < own.needed_s
    ]


def longest_verdict_s(verifiers: Sequence[ConfiguredVerifier]) -> float:
    """Return how long a verdict may take by its verifier's own options, in seconds; 0 if no verifier has such options.

    Wrong options count as 0: `deadline_problems` reports them.
    """
    try:
        return max((own.needed_s for own in _own_times(verifiers).values()), default=0.0)
    except ValueError:
        return 0.0


def _own_times(verifiers: Sequence[ConfiguredVerifier]) -> dict[str, OwnTime]:
    times = {
        name: OwnTime(f"program_s={code.program_s:g}", code.deadline_s)
        for name, code in code_verifiers(verifiers).items()
    }
    for name, judge in judges_of(verifiers).items():
        patience_s = judge.server.patience_s
        times[name] = OwnTime(f"patience_s={patience_s:g}", patience_s + _MARGIN_S)
    return times


def _built(
    verifiers: Sequence[ConfiguredVerifier],
    uses: frozenset[str],
    others: Sequence[str],
    build: Callable[[dict[str, Any]], Built],
) -> dict[str, Built]:
    """Build the verifiers with one of the names `uses`; the options `others` are not for `build`."""
    built = {}
    for verifier in verifiers:
        if verifier.use in uses:
            try:
                built[verifier.name] = build({key: each for key, each in verifier.options.items() if key not in others})
            except (TypeError, ValueError) as problem:
                raise ValueError(f"verifiers: {verifier.name}: {problem}") from problem
    return built
