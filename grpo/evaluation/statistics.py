"""The statistics of an evaluation: pass@k, majority votes, intervals that resample problems, and a paired test.

Pure functions of numbers. A suffix `_P` is one value for each problem: the problem is what is drawn from a population,
its completions are repeated measurements of it, so every interval resamples problems and not completions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rewards.checks.audit import wilson, wilson_interval

RESAMPLES = 10_000
# Memory of one round of resamples: so many drawn indices.
_DRAWS_AT_ONCE = 4_000_000
# Beyond so many different sums the paired test draws signs instead of counting all of them.
_MOST_SUMS = 4_000_000
_RANDOM_SIGNS = 100_000
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95 % interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end.
        standard_error: of the mean, from the deviation over problems; None where there is one problem.
        problems: how many it is the mean of.
        method: how the interval was made.
    """

    value: float
    low: float
    high: float
    standard_error: float | None
    problems: int
    method: Literal["wilson", "bootstrap"]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of `k` completions is correct, estimated without bias from `samples` of them.

    1 - C(samples - correct, k) / C(samples, k): Chen et al. 2021 (arXiv:2107.03374), equation 1.

    Raises:
        ValueError: fewer samples than `k`, or counts that cannot be.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@k needs 0 <= correct <= samples and 1 <= k <= samples, got {correct=}, {samples=}, {k=}"
        )
    return float(1 - Fraction(math.comb(samples - correct, k), math.comb(samples, k)))


def equivalence_classes(items: Sequence[Item], same: Callable[[Item, Item], bool]) -> list[int]:
    """The class of each item, numbered in the order in which classes appear.

    Every item is compared with the first member of each class so far, so that a relation that is not quite transitive
    (a unit may be missing) cannot chain unlike answers together.
    """
    first: list[Item] = []
    classes = []
    for item in items:
        found = next((number for number, other in enumerate(first) if same(other, item)), None)
        if found is None:
            found = len(first)
            first.append(item)
        classes.append(found)
    return classes


def majority_is_correct(classes: Sequence[int | None], correct: Sequence[bool]) -> float:
    """Whether the largest class of answers is correct: maj@k (Wang et al. 2022, arXiv:2203.11171, "self-consistency").

    Args:
        classes: of each completion's answer; None where there is none, which is no vote.
        correct: of each completion; alike within a class.

    Returns:
        The share of the largest classes that are correct: 0 or 1, or between them where classes are tied, as if the tie
        were broken by chance. 0 where nobody voted.

    Raises:
        ValueError: a class that is both correct and not.
    """
    votes = Counter(one for one in classes if one is not None)
    if not votes:
        return 0.0
    right: dict[int, bool] = {}
    for number, is_correct in zip(classes, correct, strict=True):
        if number is not None and right.setdefault(number, is_correct) != is_correct:
            raise ValueError(f"class {number} of answers is both correct and not; classes must not mix the two")
    most = max(votes.values())
    winners = [number for number, count in votes.items() if count == most]
    return sum(right[number] for number in winners) / len(winners)


def mean_estimate(values_P: Sequence[float], *, shares: bool = True, seed: int = 0) -> Estimate:
    """The mean over problems with a 95 % interval, for which the problem is what is drawn.

    Shares of a problem's completions: the interval of Wilson (1927), which stays honest near 0 and 1. Where all are 0
    or 1 it is the plain one; elsewhere problems count for as many observations as would give a plain share the variance
    that is seen between them (the effective sample size; Dean & Pagano 2015, "Evaluating confidence interval methods
    for binomial proportions in clustered surveys"), with Student's t for a variance that is estimated.

    Anything else: the expanded percentile bootstrap over problems (Hesterberg 2015, "What teachers should know about
    the bootstrap", section 5.3). Its percentiles are those of Student's t on a scale that undoes the bootstrap's bias
    in the deviation, without which the interval is too narrow for 30 problems.

    Args:
        values_P: one number for each problem.
        shares: the numbers are shares, between 0 and 1.
        seed: of the resampling.

    Raises:
        ValueError: no problem, one problem that says nothing of its spread, or a number that is not finite.
    """
    array_P = np.asarray(values_P, dtype=np.float64)
    count = len(array_P)
    if count == 0 or not np.isfinite(array_P).all():
        raise ValueError(f"a mean needs at least one problem and finite numbers, got {count} values")
    mean = float(array_P.mean())
    standard_error = float(array_P.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    if shares and np.isin(array_P, (0.0, 1.0)).all():
        rate = wilson(int(array_P.sum()), count)
        return Estimate(mean, rate.low, rate.high, standard_error, count, "wilson")
    if standard_error is None:
        raise ValueError("the interval of a single problem is unknown; evaluate more problems")
    t = _student_t(0.975, count - 1)
    if shares:
        # Problems that are all alike say nothing of their spread: each counts for one observation then.
        observations = mean * (1 - mean) / standard_error**2 if standard_error > 0 else float(count)
        low, high = wilson_interval(mean, max(float(count), observations), t)
        return Estimate(mean, low, high, standard_error, count, "wilson")
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * t)
    low, high = (float(one) for one in np.quantile(_resampled_means(array_P, seed), (tail, 1 - tail)))
    return Estimate(mean, low, high, standard_error, count, "bootstrap")


def _resampled_means(values_P: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    generator, count = np.random.default_rng(seed), len(values_P)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    rounds = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    drawn = [values_P[generator.integers(0, count, (size, count))].mean(axis=1) for size in rounds]
    return np.concatenate(drawn)


def _student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else Abramowitz & Stegun 26.7.5, to 0.5 %."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        centred = 2 * probability - 1
        return centred * math.sqrt(2 / (1 - centred * centred))
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / freedom + second / freedom**2 + third / freedom**3 + fourth / freedom**4


def paired_p_value(differences_P: Sequence[Fraction], seed: int = 0) -> float:
    """Two-sided p-value of "the two are equally good" from each problem's difference: the sign-flip permutation test.

    Were there no difference, each problem's could as well have had the other sign. The share of all sign assignments
    whose sum is at least as far from 0 as the one observed is counted exactly; with one completion for each problem
    this is McNemar's exact test. Only where the differences have too many distinct sums (many completions, of which
    some are unknown), signs are drawn instead, and the observed one counts as drawn (Phipson & Smyth 2010,
    arXiv:1603.05766).

    Args:
        differences_P: of the two shares of correct completions, one for each problem.
        seed: of the drawing.

    Raises:
        ValueError: there is no problem.
    """
    if not differences_P:
        raise ValueError("a paired test needs at least one problem that both have")
    unit = math.lcm(*(one.denominator for one in differences_P))
    steps = [abs(int(one * unit)) for one in differences_P if one]
    observed = abs(int(sum(differences_P, Fraction()) * unit))
    if sum(steps) > _MOST_SUMS or sum(steps) * len(steps) > 100 * _MOST_SUMS:
        return _drawn_p_value(differences_P, seed)
    # probability[s]: that the sum, shifted by `sum(steps)` so as not to be negative, is s. Each problem moves it by 0
    # or by twice its step.
    probability = np.ones(1)
    for step in steps:
        grown = np.zeros(len(probability) + 2 * step)
        grown[: len(probability)] += probability / 2
        grown[2 * step :] += probability / 2
        probability = grown
    sums = np.abs(np.arange(len(probability)) - sum(steps))
    return float(min(1.0, probability[sums >= observed].sum()))


def _drawn_p_value(differences_P: Sequence[Fraction], seed: int) -> float:
    sizes_P = np.abs(np.array([float(one) for one in differences_P if one]))
    observed = abs(float(sum(differences_P, Fraction())))
    generator, extreme = np.random.default_rng(seed), 0
    at_once = max(1, _DRAWS_AT_ONCE // len(sizes_P))
    for start in range(0, _RANDOM_SIGNS, at_once):
        size = min(at_once, _RANDOM_SIGNS - start)
        signs = generator.integers(0, 2, (size, len(sizes_P))) * 2 - 1
        # Equal sums must count as equal though they are added up in another order.
        extreme += int((np.abs(signs @ sizes_P) >= observed - 1e-9).sum())
    return (extreme + 1) / (_RANDOM_SIGNS + 1)
