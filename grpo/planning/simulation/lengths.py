"""The lengths of completions: recorded by a run, or drawn from a named distribution."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from grpo.report import run_files
from grpo.report.rollout_store import read_groups, stored_steps

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SYNTAX = (
    "constant:tokens=500, lognormal:median=600,sigma=0.8 (or mean= for median=), pareto:minimum=200,alpha=1.5, or a "
    "mixture such as 0.95*lognormal:median=600,sigma=0.5+0.05*pareto:minimum=3000,alpha=1.2"
)


class Lengths(Protocol):
    """A source of the lengths of completions."""

    def draw(self, random: np.random.Generator, groups: int, size: int) -> Integers:
        """Return the number of tokens of each completion, [groups, size]. Every number is at least 1."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Draws from the stored groups of a run, with replacement.

    `draw` draws whole groups, because completions of the same prompt have similar lengths. If a stored group does not
    have the wanted size, completions are drawn from the group, with replacement.

    Attributes:
        groups: number of tokens of each completion, for each stored group.
    """

    groups: tuple[tuple[int, ...], ...]

    def draw(self, random: np.random.Generator, groups: int, size: int) -> Integers:
        """See `Lengths`."""
        drawn = [np.array(self.groups[index]) for index in random.integers(len(self.groups), size=groups)]
        return np.array(
            [group if len(group) == size else random.choice(group, size) for group in drawn], dtype=np.int64
        )


@dataclass(frozen=True, slots=True)
class Modelled:
    """Independent draws from a mixture of distributions, rounded up to whole tokens and cut at a limit.

    Attributes:
        shares: share of each part of the mixture.
        parts: functions that draw a given number of lengths, not rounded.
        limit: length of the longest completion, in tokens.
    """

    shares: tuple[float, ...]
    parts: tuple[Callable[[np.random.Generator, int], Floats], ...]
    limit: int

    def draw(self, random: np.random.Generator, groups: int, size: int) -> Integers:
        """See `Lengths`."""
        which = random.choice(len(self.parts), size=groups * size, p=self.shares)
        lengths = np.empty(groups * size)
        for number, part in enumerate(self.parts):
            lengths[which == number] = part(random, int((which == number).sum()))
        # A Pareto draw may be too large for an integer. So cut before rounding.
        return np.ceil(np.clip(lengths, 1, self.limit)).astype(np.int64).reshape(groups, size)


def recorded(run: Path) -> Recorded:
    """Return the lengths of all stored steps of a run.

    Raises:
        ValueError: the run has stored no rollouts.
    """
    groups = [group for step in stored_steps(run) for group in read_groups(run, step)]
    if not groups:
        raise ValueError(
            f"{run / run_files.ROLLOUTS} holds no stored rollouts; "
            "give the folder of a run with report.rollouts_every above 0, or a distribution with --lengths"
        )
    return Recorded(tuple(tuple(rollout.completion_tokens for rollout in group.rollouts) for group in groups))


def modelled(text: str, limit: int) -> Modelled:
    """Return a distribution from its description.

    Args:
        text: description, for example `lognormal:median=600,sigma=0.8`; see `SYNTAX`.
        limit: length of the longest completion, in tokens. A longer draw is shortened to this limit, just as a
            generator ends a longer completion.

    Raises:
        ValueError: the description has a wrong form, or a parameter is out of range.
    """
    shares, parts = [], []
    for term in re.split(r"\+(?=[\d.]+\*)", text.replace(" ", "")):
        share, star, rest = term.rpartition("*")
        shares.append(_number("the share of a part", share) if star else 1.0)
        parts.append(_part(rest))
    if min(shares) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(
            f"the shares of {text!r} are {shares}; each must be 0 or more, and together they must sum to 1"
        )
    return Modelled(tuple(share / sum(shares) for share in shares), tuple(parts), limit)


def _part(text: str) -> Callable[[np.random.Generator, int], Floats]:
    name, _, rest = text.partition(":")
    given = {}
    for assignment in rest.split(",") if rest else []:
        key, _, value = assignment.partition("=")
        given[key] = _number(f"{key or 'a parameter'} of {text!r}", value)
    match name, sorted(given):
        case "constant", ["tokens"]:
            tokens = _positive(text, given, "tokens")
            return lambda _, count: np.full(count, tokens)
        case "lognormal", ["median", "sigma"]:
            return _lognormal(math.log(_positive(text, given, "median")), _positive(text, given, "sigma"))
        case "lognormal", ["mean", "sigma"]:
            sigma = _positive(text, given, "sigma")
            return _lognormal(math.log(_positive(text, given, "mean")) - sigma**2 / 2, sigma)
        case "pareto", ["alpha", "minimum"]:
            minimum, alpha = _positive(text, given, "minimum"), _positive(text, given, "alpha")
            return lambda random, count: minimum * (1 + random.pareto(alpha, count))
        case _:
            raise ValueError(f"{text!r} describes no distribution of lengths; write {SYNTAX}")


def _lognormal(location: float, sigma: float) -> Callable[[np.random.Generator, int], Floats]:
    return lambda random, count: random.lognormal(location, sigma, count)


def _positive(text: str, given: Mapping[str, float], name: str) -> float:
    if given[name] <= 0:
        raise ValueError(f"{name} of {text!r} is {given[name]}; it must be above 0")
    return given[name]


def _number(what: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {text!r}; expected a number. Lengths are described as {SYNTAX}")
    return number
