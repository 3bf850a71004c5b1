"""The statistics of an evaluation: pass@k, majority votes, intervals that resample problems, and a paired test.

Pure functions of numbers. An array with the suffix `_P` has one value for each problem. Problems are drawn from a
population; the completions of a problem are repeated measurements of it. So every interval resamples problems, not
completions.
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
# Largest number of indices drawn in a round of resamples. It bounds the memory.
_DRAWS_AT_ONCE = 4_000_000
# If there are more different sums, the paired test draws signs instead of counting all sums.
_MOST_SUMS = 4_000_000
_RANDOM_SIGNS = 100_000
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95 % interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        standard_error: standard error of the mean, from the deviation over problems; None for a single problem.
        problems: number of problems in the mean.
        method: method that computed the interval. `all equal` if all problems have the same value, whose range is not
            known: then there is no interval, and both ends are the value.
    """

    value: float
    low: float
    high: float
    standard_error: float | None
    problems: int
    method: Literal["wilson", "bootstrap", "all equal"]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of `k` completions is correct, estimated without bias from `samples` of them.

    1 - C(samples - correct, k) / C(samples, k): Chen et al. 2021 (arXiv:2107.03374), equation 1.

    Raises:
        ValueError: there are fewer samples than `k`, or the counts are impossible.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@k needs 0 <= correct <= samples and 1 <= k <= samples, got {correct=}, {samples=}, {k=}"
        )
    return float(1 - Fraction(math.comb(samples - correct, k), math.comb(samples, k)))


def equivalence_classes(items: Sequence[Item], same: Callable[[Item, Item], bool]) -> list[int]:
    """Return the class of each item. Classes are numbered in the order of their first items.

    Every item is compared only with the first item of each class. The relation may be not quite transitive (a unit may
    be missing), and comparing with every item could then join different answers into a chain.
    """
    first: list[Item] = []
    classes = []
    for item in items:
        class_number = next((number for number, other in enumerate(first) if same(other, item)), None)
        if class_number is None:
            class_number = len(first)
            first.append(item)
        classes.append(class_number)
    return classes


def majority_is_correct(classes: Sequence[int | None], correct: Sequence[bool]) -> float:
    """Return whether the largest class of answers is correct.

    This is maj@k (Wang et al. 2022, arXiv:2203.11171, "self-consistency").

    Args:
        classes: class of each completion's answer; None if the completion has no answer and does not vote.
        correct: whether each completion is correct; equal within a class.

    Returns:
        The share of correct classes among the largest classes. It is 0 or 1 without a tie. With a tie it may lie
        between: the probability that a random choice among the tied classes is correct. It is 0 without votes.

    Raises:
        ValueError: a class holds correct and wrong answers.
    """
    votes = Counter(number for number in classes if number is not None)
    if not votes:
        return 0.0
    right: dict[int, bool] = {}
    for number, is_correct in zip(classes, correct, strict=True):
        if number is not None and right.setdefault(number, is_correct) != is_correct:
            raise ValueError(f"class {number} of answers is both correct and not; classes must not mix the two")
    most = max(votes.values())
    winners = [number for number, count in votes.items() if count == most]
    return sum(right[number] for number in winners) / len(winners)


def mean_estimate(
    values_P: Sequence[float], *, shares: bool = True, seed: int = 0, bounds: tuple[float, float] | None = None
) -> Estimate:
    """Return the mean over problems with a 95 % interval that treats problems as the random draws.

    For shares of a problem's completions, the interval is that of Wilson (1927), which stays valid near 0 and 1. If all
    shares are 0 or 1, it is the plain Wilson interval. Otherwise it uses the effective sample size: the number of
    observations for which a plain share has the variance between problems (Dean & Pagano 2015, "Evaluating confidence
    interval methods for binomial proportions in clustered surveys"). Because this variance is estimated, the interval
    uses Student's t.

    For other numbers, the interval is the expanded percentile bootstrap over problems (Hesterberg 2015, "What teachers
    should know about the bootstrap", section 5.3). It takes its percentiles from Student's t, on a scale that corrects
    the bootstrap's bias in the deviation. Without this correction the interval is too narrow for 30 problems. If all
    these numbers are equal, a resample shows no spread. Then at most the share `wilson(0, problems).high` of all
    problems differs, and each of them by no more than `bounds` allow.

    Args:
        values_P: number for each problem.
        shares: whether the numbers are shares, between 0 and 1.
        seed: seed of the resampling.
        bounds: smallest and largest possible number of a problem; None if they are not known.

    Raises:
        ValueError: there is no problem, a number is not finite, or a single problem does not show a spread.
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
        # If all problems are equal, their spread is unknown. Then each problem counts as an observation.
        observations = mean * (1 - mean) / standard_error**2 if standard_error > 0 else float(count)
        low, high = wilson_interval(mean, max(float(count), observations), t)
        return Estimate(mean, low, high, standard_error, count, "wilson")
    if math.isclose(array_P.min(), array_P.max(), rel_tol=1e-9, abs_tol=1e-12):
        low, high = bounds or (mean, mean)
        others = wilson(0, count).high
        low, high = mean - others * (mean - low), mean + others * (high - mean)
        return Estimate(mean, low, high, standard_error, count, "wilson" if bounds else "all equal")
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * t)
    low, high = (float(bound) for bound in np.quantile(_resampled_means(array_P, seed), (tail, 1 - tail)))
    return Estimate(mean, low, high, standard_error, count, "bootstrap")


def _resampled_means(values_P: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    generator, count = np.random.default_rng(seed), len(values_P)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    rounds = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    drawn = [values_P[generator.integers(0, count, (size, count))].mean(axis=1) for size in rounds]
    return np.concatenate(drawn)


def _student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t. Exact for 1 and 2 degrees of freedom; else Abramowitz & Stegun 26.7.5, within 0.5 %."""
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

    If the two are equally good, each difference could have the other sign with equal probability. The p-value is the
    share of all sign assignments whose sum is at least as far from 0 as the observed sum. This share is counted
    exactly; with one completion for each problem the test is McNemar's exact test. If the differences have too many
    distinct sums (many completions, some of them unknown), the test draws random signs instead. It then counts the
    observed signs as a draw (Phipson & Smyth 2010, arXiv:1603.05766).

    Args:
        differences_P: difference of the two shares of correct completions, for each problem.
        seed: seed of the random signs.

    Raises:
        ValueError: there is no problem.
    """
    if not differences_P:
        raise ValueError("a paired test needs at least one problem that both have")
    unit = math.lcm(*(difference.denominator for difference in differences_P))
    steps = [abs(int(difference * unit)) for difference in differences_P if difference]
    observed = abs(int(sum(differences_P, Fraction()) * unit))
    if sum(steps) > _MOST_SUMS or sum(steps) * len(steps) > 100 * _MOST_SUMS:
        return _drawn_p_value(differences_P, seed)
    # probability[s] is the probability that the shifted sum is s. The shift `sum(steps)` makes all sums 0 or more.
    # Each problem then adds either 0 or twice its step.
    probability = np.ones(1)
    for step in steps:
        grown = np.zeros(len(probability) + 2 * step)
        grown[: len(probability)] += probability / 2
        grown[2 * step :] += probability / 2
        probability = grown
    sums = np.abs(np.arange(len(probability)) - sum(steps))
    return float(min(1.0, probability[sums >= observed].sum()))


def _drawn_p_value(differences_P: Sequence[Fraction], seed: int) -> float:
    sizes_P = np.abs(np.array([float(difference) for difference in differences_P if difference]))
    observed = abs(float(sum(differences_P, Fraction())))
    generator, extreme = np.random.default_rng(seed), 0
    at_once = max(1, _DRAWS_AT_ONCE // len(sizes_P))
    for start in range(0, _RANDOM_SIGNS, at_once):
        size = min(at_once, _RANDOM_SIGNS - start)
        signs = generator.integers(0, 2, (size, len(sizes_P))) * 2 - 1
        # Summing in another order rounds differently. The tolerance keeps equal sums equal.
        extreme += int((np.abs(signs @ sizes_P) >= observed - 1e-9).sum())
    return (extreme + 1) / (_RANDOM_SIGNS + 1)
