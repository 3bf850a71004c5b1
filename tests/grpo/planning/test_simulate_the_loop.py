"""The simulator against the real training loop, whose engines take their time on a clock that only counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slow_engines import drive_virtually, settings_of
from tiny_policy import make_tiny_policy

from grpo.planning.simulation.loop import Deployment, RolloutSchedule, Speeds, simulate

PROMPTS, SIZE, STEPS = 4, 3, 8


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(("lag", "slots"), [(0, 100), (1, 5), (2, 100), (4, 5), (4, 100)])
def test_the_loop_does_what_was_predicted(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, lag: int, slots: int
) -> None:
    random = np.random.default_rng(lag)
    total = STEPS + lag
    tokens = np.clip(np.ceil(random.lognormal(2, 1, (total * PROMPTS, SIZE))), 2, 80)
    # No two end at the same time, when rounding would decide which is first.
    lengths = tokens + random.uniform(0.01, 0.99, tokens.shape)
    speeds = Speeds(0.1, 0.01, learn_base_s=1.5, push_s=0.3)
    deployment = Deployment(2, slots)
    settings = settings_of(tmp_path / "run", policy, PROMPTS, lag, lengths, total)
    driven = drive_virtually(settings, deployment, speeds, lengths, monkeypatch)
    # The loop asks for nothing that no step would use, which the last steps feel.
    predicted = simulate(RolloutSchedule(PROMPTS, lag), deployment, speeds, lengths, STEPS)  # type: ignore[arg-type]
    for number, step in enumerate(predicted):
        assert driven.pushed_s[number] == pytest.approx(step.began_s)
        assert driven.ready_s[number] == pytest.approx(step.ready_s)
        assert driven.taken[number] == list(step.groups)


def test_on_a_long_tail_a_lag_is_worth_a_factor_of_two(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.clip(np.ceil(np.random.default_rng(0).lognormal(1.5, 1.2, (24 * PROMPTS, SIZE))), 2, 100)
    speeds, deployment = Speeds(0.1, 0.001, learn_base_s=1.0, push_s=0.1), Deployment(2, 100)
    mean_s = {}
    for lag in (0, 4):
        settings = settings_of(tmp_path / f"run{lag}", policy, PROMPTS, lag, tokens, 20 + lag)
        pushed_s = drive_virtually(settings, deployment, speeds, tokens, monkeypatch).pushed_s
        mean_s[lag] = (pushed_s[20] - pushed_s[5]) / 15
    assert mean_s[0] > 2 * mean_s[4]
