"""The statistics of scores: how often a model agrees with preferences, and how much of that is length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rewards.checks.audit import wilson_interval

# Two answers have about the same length if the shorter one has at least this share of the longer one's tokens.
MATCHED_LENGTH = 0.9
# Number of bins of the confidence, from 1/2 to 1.
_BINS = 10
_Z = 1.96


def pair_statistics(scores: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]) -> dict[str, float]:
    """Compare the scores of answers with people's preferences.

    Each row counts once: a pair of a ranking has the weight 1 / (number of pairs). A tie of scores is half right.

    Args:
        scores: scores of the answers of each row, the best answer first.
        lengths: lengths of the same answers, in tokens.

    Returns:
        accuracies: share of pairs whose better answer has the higher score, with its 95 % Wilson interval over the rows
            (`accuracies_low`, `accuracies_high`).
        margins: mean of the better answer's score minus the worse answer's.
        calibration_error: expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 5): mean distance
            between the sigmoid of the margin and the share of right pairs, in ten bins of confidence.
        matched_length_accuracies: accuracy on the pairs with about the same length; absent if there are none.
        length_only_accuracies: accuracy of the rule "longer is better", or "shorter is better" if that is right more
            often.
        length_correlation: correlation of score and length within the rows; absent if either never differs.
    """
    gaps, longer, matched, weights = [], [], [], []
    for row, counts in zip(scores, lengths, strict=True):
        pairs = list(itertools.combinations(range(len(row)), 2))
        for better, worse in pairs:
            gaps.append(row[better] - row[worse])
            longer.append(counts[better] - counts[worse])
            shorter, longest = sorted((counts[better], counts[worse]))
            matched.append(shorter >= MATCHED_LENGTH * longest)
            weights.append(1 / len(pairs))
    gap_P, weight_P, matched_P = np.array(gaps), np.array(weights), np.array(matched)
    right_P = _right(gap_P)
    accuracy = float(np.average(right_P, weights=weight_P))
    low, high = wilson_interval(accuracy, len(scores), _Z)
    by_length = float(np.average(_right(np.array(longer)), weights=weight_P))
    statistics = {
        "accuracies": accuracy,
        "accuracies_low": low,
        "accuracies_high": high,
        "margins": float(np.average(gap_P, weights=weight_P)),
        "calibration_error": calibration_error(gap_P, right_P, weight_P),
        "length_only_accuracies": max(by_length, 1 - by_length),
    }
    if matched_P.any():
        statistics["matched_length_accuracies"] = float(np.average(right_P[matched_P], weights=weight_P[matched_P]))
    score_A, length_A = _centred(scores), _centred(lengths)
    scale = float(np.sqrt((score_A**2).sum() * (length_A**2).sum()))
    if scale > 0:
        statistics["length_correlation"] = float((score_A * length_A).sum()) / scale
    return statistics


def calibration_error(gap_P: np.ndarray, right_P: np.ndarray, weight_P: np.ndarray) -> float:
    """Return the expected calibration error of the probabilities sigmoid(|gap|) of pairs that are right or not."""
    confidence_P = 1 / (1 + np.exp(-np.abs(gap_P)))
    bin_P = np.minimum(((confidence_P - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    off = np.bincount(bin_P, weight_P * (confidence_P - right_P), _BINS)
    return float(np.abs(off).sum() / weight_P.sum())


def _right(gap_P: np.ndarray) -> np.ndarray:
    """1 where the gap is positive, 1/2 where it is 0, and else 0."""
    right_P: np.ndarray = (np.sign(gap_P) + 1) / 2
    return right_P


def _centred(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Subtract the mean of each row, since rows differ in what a usual score or length is."""
    return np.concatenate([np.asarray(row, float) - np.mean(row) for row in rows])
