"""Fit the simulator's speeds to the metrics and the stored completions of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grpo.config.file import read
from grpo.planning.simulation.generators import RolloutSchedule
from grpo.planning.simulation.loop import Deployment, Integers, Speeds, simulate
from grpo.report import run_files
from grpo.report.metrics_log import read_history
from grpo.report.rollout_store import read_groups, stored_steps

# The fit begins with this step. It ignores the first step, which compiles and fills caches.
FIRST_STEP = 2
# Number of rounds of the fit. The fit converges after two or three rounds.
ROUNDS = 4


def speeds_of(run: Path) -> Speeds:
    """Return the speeds that explain a run's times best: a least-squares fit without negative speeds.

    The fit of decoding explains `time/generate_s` of the stored steps. For each step, the simulator computes the number
    of engine steps and the number of sequences in these engine steps. The fit of learning explains `time/learn_s` by
    the number of completion tokens. The time of a push is the median of `time/sync_s`. The fit cannot separate prefill
    from decoding, so the decoding speeds include prefill.

    Raises:
        ValueError: the folder holds no run, sampling overlapped with learning in the run, or the run is too short.
    """
    if not (run / run_files.CONFIG).is_file():
        raise ValueError(f"{run} has no {run_files.CONFIG}; give the folder of a run, its run.folder")
    # Read without validation: a run of an earlier release may have settings with other names.
    settings = read(run / run_files.CONFIG)
    metrics = {line.step: line.metrics for line in read_history(run).lines if line.step >= FIRST_STEP}
    timed = [step for step in stored_steps(run) if "time/generate_s" in metrics.get(step, {})]
    if len(timed) < 2:
        raise ValueError(
            f"{run} has {len(timed)} stored steps after the first with their times in {run_files.METRICS}, but the "
            "fit of speeds needs two or more; take a longer run, or give the speeds as options"
        )
    base_s, sequence_s = _decoding(settings, run, metrics, timed)
    tokens = [metrics[step]["throughput/tokens_per_s"] * metrics[step]["time/step_s"] for step in timed]
    learn_base_s, learn_token_s = fit([1.0] * len(timed), tokens, [metrics[step]["time/learn_s"] for step in timed])
    return Speeds(
        decode_base_s=base_s,
        decode_sequence_s=sequence_s,
        learn_base_s=learn_base_s,
        learn_token_s=learn_token_s * settings["learner"]["ranks"],
        push_s=statistics.median(metrics[step]["time/sync_s"] for step in timed),
    )


def _decoding(
    settings: Mapping[str, Any], run: Path, metrics: Mapping[int, Mapping[str, float]], steps: Sequence[int]
) -> tuple[float, float]:
    deployment = Deployment(settings["generator"]["replicas"], settings["generator"]["max_sequences"])
    lengths = [_lengths(run, step) for step in steps]
    seconds = [metrics[step]["time/generate_s"] for step in steps]

    def predicted(base_s: float, sequence_s: float) -> list[float]:
        speeds = Speeds(base_s, sequence_s)
        return [simulate(RolloutSchedule(len(step)), deployment, speeds, step, 1)[0].ready_s for step in lengths]

    engine_steps, sequences = np.array(predicted(1.0, 0.0)), np.array(predicted(0.0, 1.0))
    fitted = fit(engine_steps, sequences, seconds)
    for _ in range(ROUNDS):
        # Which replica finishes last depends on the speeds. As long as the same replica finishes last, the seconds are
        # linear in the speeds. So compute the slopes near the present speeds, and fit again.
        a_bit = 1e-6 * max(fitted)
        here = np.array(predicted(*fitted))
        engine_steps = (np.array(predicted(fitted[0] + a_bit, fitted[1])) - here) / a_bit
        sequences = (np.array(predicted(fitted[0], fitted[1] + a_bit)) - here) / a_bit
        fitted = fit(engine_steps, sequences, seconds)
    return fitted


def _lengths(run: Path, step: int) -> Integers:
    """Return the number of tokens of each completion of a step, [groups, completions of a group]."""
    groups = read_groups(run, step)
    if any(rollout.policy_versions != (step - 1,) for group in groups for rollout in group.rollouts):
        raise ValueError(
            f"step {step} of {run} learned from tokens of other policy versions: sampling and learning "
            "overlapped, so the fit cannot separate their seconds; give the speeds as options, or take them from a run "
            "with rollout.max_policy_lag=0"
        )
    return np.array([[rollout.completion_tokens for rollout in group.rollouts] for group in groups])


def fit(first: ArrayLike, second: ArrayLike, seconds: ArrayLike) -> tuple[float, float]:
    """Return the least-squares fit of `a * first + b * second` to `seconds`: (a, b), both 0 or more."""
    design, wanted = np.array([first, second]).T, np.array(seconds)
    # If the solution without bounds has no negative number, this solution is the best. Otherwise the best solution has
    # a = 0 or b = 0.
    candidates = [np.linalg.lstsq(design, wanted, rcond=None)[0]]
    for column in (0, 1):
        square = float(design[:, column] @ design[:, column])
        edge = np.zeros(2)
        edge[column] = max(0.0, float(design[:, column] @ wanted)) / square if square else 0.0
        candidates.append(edge)
    inside = [candidate for candidate in candidates if (candidate >= 0).all()]
    best = min(inside, key=lambda candidate: float(np.square(design @ candidate - wanted).sum()))
    return float(best[0]), float(best[1])
