"""What a step says in numbers: right, and by names that are documented."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from documented_metrics import is_documented
from fake_run import make_groups, make_rollout

from grpo.config import TrainConfig
from grpo.run.metrics import lag_metrics, rollout_metrics, speed_metrics, update_metrics
from grpo.run.stopwatch import Stopwatch
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict


def settings_with(**algorithm: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"folder": "run"},
            "policy": {"path": "policy"},
            "data": {"path": "rows.jsonl"},
            "verifiers": [{"name": "answer", "use": "exact"}],
            "rollout": {"prompts_per_step": 1},
            "algorithm": algorithm,
            "train": {"steps": 1},
        }
    )


SETTINGS = settings_with()
PROMPT = Prompt("p", "?", (1,), "0", {})
GROUPS = [
    Group(
        PROMPT,
        (
            make_rollout("aa", {"answer": verdict.correct(), "form": verdict.correct()}),
            make_rollout("aaaaaa", {"answer": verdict.wrong(), "form": verdict.correct(score=0.5)}, finish="length"),
        ),
    ),
    Group(
        PROMPT,
        (
            make_rollout("aaaa", {"answer": verdict.unparseable(), "form": verdict.wrong()}),
            make_rollout("aaaa", {"answer": verdict.timeout("slow"), "form": verdict.wrong()}),
        ),
    ),
]


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("grpo.run.stopwatch.time.perf_counter", made)
    return made


def test_phases_add_up(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 1
    for phase, seconds in [("generate", 4), ("verify", 0.5), ("generate", 2), ("learn", 8), (None, 16), ("sync", 32)]:
        watch.start(phase)
        clock.now += seconds
    # A phase that still runs is not in its own entry yet, but in the whole.
    assert watch.metrics() == {
        "time/generate_s": 6.0,
        "time/verify_s": 0.5,
        "time/learn_s": 8.0,
        "time/step_s": 63.5,
    }
    watch.start(None)
    assert watch.metrics()["time/sync_s"] == 32.0
    # A phase that comes back is where it first was.
    assert watch.starts() == {
        "time/generate_from_s": 1.0,
        "time/verify_from_s": 5.0,
        "time/learn_from_s": 7.5,
        "time/sync_from_s": 31.5,
    }
    assert watch.elapsed_s == 63.5


def test_what_a_step_s_groups_say() -> None:
    found = rollout_metrics(GROUPS, SETTINGS, torch.zeros(2, 2))
    # Known rewards are 1, 0.25 and 0; the fourth verdict failed.
    mean = 1.25 / 3
    assert found == pytest.approx(
        {
            "rollout/groups": 2.0,
            "rollout/accuracy": 0.25,
            "rollout/completion_tokens_mean": 4.0,
            "rollout/completion_tokens_max": 6.0,
            "rollout/truncated_share": 0.25,
            "rollout/zero_variance_share": 0.5,
            "rollout/failed_verdicts": 1.0,
            "reward/mean": mean,
            "reward/std": math.sqrt(((1 - mean) ** 2 + (0.25 - mean) ** 2 + mean**2) / 3),
            "reward/answer": 1 / 3,
            "reward/form": 1.5 / 4,
            "verdict/answer/correct": 0.25,
            "verdict/answer/scored": 0.0,
            "verdict/answer/wrong": 0.25,
            "verdict/answer/unparseable": 0.25,
            "verdict/answer/timeout": 0.25,
            "verdict/answer/error": 0.0,
            "verdict/form/correct": 0.5,
            "verdict/form/scored": 0.0,
            "verdict/form/wrong": 0.5,
            "verdict/form/unparseable": 0.0,
            "verdict/form/timeout": 0.0,
            "verdict/form/error": 0.0,
        }
    )


def test_where_every_verdict_failed_no_reward_is_made_up() -> None:
    lost = Group(PROMPT, (make_rollout("aa", {"answer": verdict.error("broke")}),) * 2)
    found = rollout_metrics([lost], SETTINGS, torch.zeros(1, 2))
    assert not [name for name in found if name.startswith("reward/")]
    assert found["rollout/failed_verdicts"] == 2.0 and found["rollout/accuracy"] == 0.0


def test_updates_are_averaged_but_for_the_largest_ratio_and_the_last_rate() -> None:
    updates = [
        {"loss": 1.0, "gradient_norm": 2.0, "ratio_max": 3.0, "learning_rate": 1e-3, "padding_share": 0.5},
        {"loss": -2.0, "gradient_norm": 4.0, "ratio_max": 1.5, "learning_rate": 5e-4, "padding_share": 0.0},
    ]
    assert update_metrics(updates) == {
        "learner/loss": -0.5,
        "learner/gradient_norm": 3.0,
        "learner/ratio_max": 3.0,
        "learner/learning_rate": 5e-4,
        "learner/padding_share": 0.25,
    }
    assert update_metrics([]) == {}


def test_speeds_are_the_amount_over_the_time_and_the_first_mismatch_is_kept() -> None:
    updates = [
        {"learning_rate": 1.0, "compute_s": 1.0, "tokens_per_s": 30.0, "peak_memory_gib": 2.0, "mismatch_kl": 1e-5},
        {"learning_rate": 1.0, "skipped_steps": 1.0},
        {"learning_rate": 1.0, "compute_s": 3.0, "tokens_per_s": 10.0, "peak_memory_gib": 1.0, "mismatch_kl": 3e-3},
    ]
    found = update_metrics(updates)
    assert found["learner/tokens_per_s"] == 60.0 / 4.0
    assert found["learner/compute_s"] == 4.0
    assert found["learner/peak_memory_gib"] == 2.0
    assert found["learner/mismatch_kl_first"] == 1e-5
    # Of a step whose first update was skipped nobody knows it: by the second the policy may have moved.
    assert "learner/mismatch_kl_first" not in update_metrics(updates[1:])


def test_what_is_filtered_refilled_and_penalised_is_counted() -> None:
    settings = settings_with(refill_rounds=1, overlong_filter=True, kl="k1", kl_coefficient=0.1, kl_place="reward")
    found = rollout_metrics(GROUPS, settings, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    # One prompt a step was asked for; one completion is cut; three with a reward have 2, 6 and 4 tokens.
    assert found["rollout/refilled_groups"] == 1.0
    assert found["rollout/overlong_filtered"] == 1.0
    assert found["rollout/kl_reference"] == pytest.approx(6.0 / 12)
    assert [name for name in found if not is_documented(name)] == []


def test_skipped_steps_are_added_up_and_measure_nothing_else() -> None:
    done = {"loss": 1.0, "learning_rate": 1e-3, "skipped_steps": 0.0}
    found = update_metrics(
        [done, {"learning_rate": 5e-4, "skipped_steps": 1.0}, {"learning_rate": 1e-4, "skipped_steps": 1.0}]
    )
    assert found == {"learner/loss": 1.0, "learner/learning_rate": 1e-4, "learner/skipped_steps": 2.0}


def test_speed_is_over_the_whole_step(clock: Clock) -> None:
    watch = Stopwatch()
    watch.start("generate")
    clock.now += 1.5
    watch.start("verify")
    clock.now += 0.5
    watch.start(None)
    clock.now += 6
    assert speed_metrics(watch, GROUPS) == {
        "time/generate_s": 1.5,
        "time/generate_from_s": 0.0,
        "time/verify_s": 0.5,
        "time/verify_from_s": 1.5,
        "time/learner_idle_s": 2.0,
        "time/step_s": 8.0,
        "throughput/completions_per_s": 0.5,
        "throughput/tokens_per_s": 2.0,
    }


def test_lag_is_told_by_token() -> None:
    def sampled(*versions: int) -> Rollout:
        spans = tuple(VersionSpan(at, at + 1, version) for at, version in enumerate(versions))
        count = len(versions)
        completion = Completion((5,) * count, (-1.0,) * count, "", "stop", spans)
        return Rollout(completion, {"answer": verdict.wrong()}, 0.0)

    groups = [Group(PROMPT, (sampled(5, 6, 7), sampled(7))), Group(PROMPT, (sampled(7), sampled(7, 7, 7)))]
    assert lag_metrics(groups, 7) == {
        "rollout/policy_lag_mean": 3 / 8,
        "rollout/policy_lag_max": 2.0,
        "rollout/groups_carried_over": 1.0,
    }


def test_every_name_is_documented(clock: Clock) -> None:
    groups = make_groups(random.Random(0), 1, 0.5)
    watch = Stopwatch()
    for phase in ("generate", "verify", "learn", "sync", None):
        watch.start(phase)
        clock.now += 1
    update = {name: 1.0 for name in ("loss", "entropy", "ratio_max", "gradient_norm", "learning_rate", "mismatch_kl")}
    found = (
        rollout_metrics(groups, SETTINGS, torch.zeros(1, 1))
        | update_metrics([update])
        | speed_metrics(watch, groups)
        | lag_metrics(groups, 1)
    )
    assert len(found) > 20
    assert [name for name in found if not is_documented(name)] == []
