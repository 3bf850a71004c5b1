"""The statistics of an evaluation, against exact enumeration and simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from grpo.evaluation import statistics as eval_statistics
from grpo.evaluation.statistics import (
    equivalence_classes,
    majority_is_correct,
    mean_estimate,
    paired_p_value,
    pass_at_k,
)
from rewards.checks.audit import wilson


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_equals_the_enumeration_of_all_draws(samples: int) -> None:
    for correct in range(samples + 1):
        outcomes = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            draws = list(itertools.combinations(outcomes, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over all outcomes of n samples is the probability that k samples hold a correct one."""
    chance, n, k = 0.3, 6, 3
    expected = sum(math.comb(n, c) * chance**c * (1 - chance) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - chance) ** k, abs=1e-12)


@pytest.mark.parametrize(("samples", "correct", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="1 <= k <= samples"):
        pass_at_k(samples, correct, k)


def test_classes_are_of_what_is_the_same_and_do_not_chain() -> None:
    assert equivalence_classes(["1/2", "0.5", "3", "2/4"], lambda a, b: value(a) == value(b)) == [0, 0, 1, 0]
    assert equivalence_classes([0, 1, 2], lambda a, b: abs(a - b) <= 1) == [0, 0, 1], "2 is not near 0"


def value(text: str) -> Fraction:
    return Fraction(text)


@pytest.mark.parametrize(
    ("classes", "correct", "expected"),
    [
        ([0, 0, 1], [True, True, False], 1.0),
        ([0, 1, 1], [True, False, False], 0.0),
        ([0, 1], [True, False], 0.5),
        ([0, 1, 2], [True, False, False], 1 / 3),
        ([None, None, 0], [False, False, True], 1.0),
        ([None, None], [False, False], 0.0),
    ],
)
def test_the_majority_decides(classes: list[int | None], correct: list[bool], expected: float) -> None:
    assert majority_is_correct(classes, correct) == pytest.approx(expected)


def test_a_class_cannot_be_both() -> None:
    with pytest.raises(ValueError, match="both correct and not"):
        majority_is_correct([0, 0], [True, False])


def test_intervals_at_the_edges() -> None:
    nothing = mean_estimate([0.0] * 30)
    assert nothing.method == "wilson" and nothing.low == 0.0 and 0.1 < nothing.high < 0.12
    assert mean_estimate([1.0] * 164).low > 0.97
    fractional = [0.0, 0.25, 1.0] * 20
    lengths = mean_estimate(fractional, shares=False)
    assert lengths.method == "bootstrap" and lengths.low < lengths.value < lengths.high
    assert mean_estimate(fractional, shares=False) == lengths, "the same numbers have the same interval"
    shares = mean_estimate(fractional)
    assert shares.method == "wilson"
    assert (shares.low, shares.high) == (pytest.approx(lengths.low, abs=0.01), pytest.approx(lengths.high, abs=0.01))
    # Of problems that are all alike the spread is unknown, and hardly any above 0 is not none.
    alike, rare = mean_estimate([0.5] * 30), mean_estimate([0.0] * 29 + [1 / 32])
    assert alike.low < 0.35 and alike.high > 0.65
    assert 0 < rare.low < 1 / 960 < rare.high < 0.02
    with pytest.raises(ValueError, match="at least one problem"):
        mean_estimate([])
    with pytest.raises(ValueError, match="evaluate more problems"):
        mean_estimate([0.5])


def test_equal_values_do_not_claim_certainty() -> None:
    none = mean_estimate([0.0] * 12, shares=False, bounds=(-1.0, 1.0))
    assert none.high == -none.low == pytest.approx(wilson(0, 12).high) and none.method == "wilson"
    most = mean_estimate([1.0 - 1e-16] * 6, shares=False, bounds=(0.0, 1.0))
    assert (most.low, most.high) == (pytest.approx(wilson(6, 6).low), pytest.approx(1.0))
    third = mean_estimate([1 / 3] * 50, shares=False, bounds=(-1.0, 1.0))
    assert -1 < third.low < 1 / 3 < third.high < 1
    lengths = mean_estimate([5.0] * 12, shares=False)
    assert (lengths.low, lengths.high, lengths.method) == (5.0, 5.0, "all equal")


@pytest.mark.parametrize(
    ("freedom", "quantile", "error"),
    [
        (1, 12.706204736, 1e-9),
        (2, 4.302652730, 1e-9),
        # The expansion's own error, which falls with the fifth power of the degrees of freedom.
        (3, 3.182446305, 1.3e-3),
        (4, 2.776445105, 3.2e-4),
        (9, 2.262157163, 7e-6),
        (19, 2.093024054, 2e-7),
        (29, 2.045229642, 2e-8),
        (99, 1.984216952, 1e-9),
    ],
)
def test_students_t(freedom: int, quantile: float, error: float) -> None:
    assert eval_statistics._student_t(0.975, freedom) == pytest.approx(quantile, rel=error)
    assert eval_statistics._student_t(0.025, freedom) == pytest.approx(-quantile, rel=error)


def test_votes_and_verdicts_have_the_same_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        majority_is_correct([0, 0], [True])
    with pytest.raises(ValueError, match="longer"):
        majority_is_correct([0], [True, False])


@pytest.mark.parametrize(
    ("problems", "samples", "easy", "hard"),
    [(30, 1, 0.6, 0.9), (30, 8, 0.6, 0.9), (100, 8, 0.6, 0.9), (30, 8, 0.3, 2.7), (30, 4, 9.0, 1.0)],
)
def test_intervals_cover_the_truth(problems: int, samples: int, easy: float, hard: float) -> None:
    """Problems of beta-distributed difficulty, a few completions each: about 95 of 100 intervals hold the mean."""
    generator, trials, covered = np.random.default_rng(7), 2000, 0
    for _ in range(trials):
        values_P = generator.binomial(samples, generator.beta(easy, hard, problems)) / samples
        found = mean_estimate(values_P.tolist())
        covered += found.low <= easy / (easy + hard) <= found.high
    # Three deviations of so many trials, and the error of the interval itself where most problems are all or nothing.
    assert 0.93 <= covered / trials <= 0.97, covered / trials


def test_intervals_of_lengths_cover_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_statistics, "RESAMPLES", 1000)
    generator, trials, covered = np.random.default_rng(7), 1000, 0
    for trial in range(trials):
        found = mean_estimate(generator.gamma(4.0, 100.0, 30).tolist(), shares=False, seed=trial)
        covered += found.low <= 400.0 <= found.high
    assert 0.93 <= covered / trials <= 0.97, covered / trials


@pytest.mark.parametrize(("count", "quantile"), [(5, 2.776), (30, 2.045)])
def test_the_percentiles_of_lengths_are_those_of_n_less_one_degrees_of_freedom(
    count: int, quantile: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hesterberg 2015, section 5.3: the tail is the normal one of sqrt(n / (n - 1)) times Student's quantile."""
    monkeypatch.setattr(eval_statistics, "_resampled_means", lambda values_P, seed: np.linspace(0.0, 1.0, 1_000_001))
    interval = mean_estimate([float(number) for number in range(count)], shares=False)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)
    assert interval.low == pytest.approx(tail, rel=0.07) and interval.high == pytest.approx(1 - interval.low)


def enumerated_p_value(differences: list[Fraction]) -> float:
    observed = abs(sum(differences))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    extreme = sum(abs(sum(s * d for s, d in zip(sign, differences, strict=True))) >= observed for sign in signs)
    return extreme / len(signs)


@pytest.mark.parametrize(
    "differences",
    [
        [Fraction(1, 4), Fraction(-1, 2), Fraction(3, 4), Fraction(1), Fraction(0)],
        [Fraction(1)] * 6 + [Fraction(-1)] * 2,
        [Fraction(1, 3), Fraction(1, 7), Fraction(-2, 5), Fraction(1, 2)],
        [Fraction(0)] * 3,
    ],
)
def test_the_paired_test_counts_every_sign(differences: list[Fraction]) -> None:
    assert paired_p_value(differences) == pytest.approx(enumerated_p_value(differences), abs=1e-12)


def test_the_paired_test_of_single_completions_is_mcnemars() -> None:
    better, worse = 12, 3
    exact = 2 * sum(math.comb(15, i) for i in range(worse + 1)) / 2**15
    differences = [Fraction(1)] * better + [Fraction(-1)] * worse + [Fraction(0)] * 40
    assert paired_p_value(differences) == pytest.approx(exact, rel=1e-12)


def test_drawn_signs_come_near_the_exact_value(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [Fraction(n, 8) for n in (3, -1, 5, 8, -2, 4, 0, 1, -6, 7)]
    exact = paired_p_value(differences)
    monkeypatch.setattr(eval_statistics, "_MOST_SUMS", 1)
    assert paired_p_value(differences) == pytest.approx(exact, abs=0.01)
    assert paired_p_value(differences) != exact
