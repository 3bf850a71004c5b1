"""What `grpo profile` advises, from made-up figures."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.config import TrainConfig
from grpo.planning.advice import Advice, advice

CALM = {
    "time/step_s": 10.0,
    "time/generate_s": 8.0,
    "time/verify_s": 0.1,
    "time/learn_s": 1.5,
    "time/sync_s": 0.3,
    "learner/compute_s": 1.4,
    "rollout/completion_tokens_mean": 100.0,
    "rollout/completion_tokens_max": 200.0,
}


def settings(**sections: Any) -> TrainConfig:
    data = {
        "run": {"folder": "runs/x"},
        "policy": {"path": "policy"},
        "data": {"generator": "grpo.data.arithmetic:questions"},
        "verifiers": [{"name": "answer", "use": "numeric"}, {"name": "slow", "use": "math"}],
        "rollout": {"prompts_per_step": 8, "group_size": 4},
        "generator": {"replicas": 2, "threads": 1},
        "train": {"steps": 1},
    }
    return TrainConfig.model_validate(data | sections)


def advised(metrics: dict[str, float], on_gpu: bool = False, cores: int = 2, **sections: Any) -> list[Advice]:
    return advice(settings(**sections), CALM | metrics, {"generate": 0.9, "learn": 0.9}, cores, on_gpu)


def test_nothing_is_advised_where_nothing_stands_out() -> None:
    assert advised({}) == []


@pytest.mark.parametrize(
    ("metrics", "sections", "phase", "seen", "try_next"),
    [
        ({"rollout/completion_tokens_max": 900.0}, {}, "generate", "900 tokens", "max_policy_lag"),
        ({}, {"rollout": {"prompts_per_step": 64, "group_size": 64}}, "generate", "2048 completions", "max_sequences"),
        ({"rollout/truncated_share": 0.5}, {}, "generate", "50%", "max_completion_tokens"),
        ({"time/verify_s": 3.0, "verifier/slow/p50_s": 2.0}, {}, "verify", "'slow' takes 2 s", "verification.workers"),
        ({"time/sync_s": 2.0}, {}, "sync", "push", "minibatches"),
        ({"learner/padding_share": 0.3}, {}, "learn", "30%", "microbatch_tokens"),
        ({"learner/compute_s": 0.5}, {}, "learn", "67%", "minibatches"),
        (
            {},
            {"learner": {"gradient_checkpointing": True}},
            "learn",
            "100% of the layers' forward passes twice",
            "a lower share",
        ),
        ({"rollout/zero_variance_share": 0.75}, {}, "sampling", "75%", "refill_rounds"),
    ],
)
def test_each_finding_names_its_figure_and_its_remedy(
    metrics: dict[str, float], sections: dict[str, Any], phase: str, seen: str, try_next: str
) -> None:
    (found,) = advised(metrics, **sections)
    assert found.phase == phase
    assert seen in found.seen
    assert try_next in found.try_next


@pytest.mark.parametrize(
    ("metrics", "sections"),
    [
        ({"rollout/completion_tokens_max": 400.0}, {}),
        ({}, {"generator": {"replicas": 2, "threads": 1, "max_sequences": 16}}),
        ({"rollout/truncated_share": 0.2}, {}),
        ({"learner/padding_share": 0.05}, {}),
        ({"learner/compute_s": 1.1}, {}),
        ({"rollout/zero_variance_share": 0.5}, {}),
        ({"time/verify_s": 0.99, "time/sync_s": 0.99}, {}),
    ],
)
def test_a_figure_at_its_threshold_is_left_alone(metrics: dict[str, float], sections: dict[str, Any]) -> None:
    assert advised(metrics, **sections) == []


def test_a_phase_is_worth_a_look_from_a_tenth_of_a_step_on_and_busy_from_a_half() -> None:
    assert [(one.phase, one.share) for one in advised({"time/sync_s": 1.0})] == [("sync", 0.1)]
    assert advice(settings(), CALM, {"generate": 0.5, "learn": 0.5}, 2, False) == []
    assert advice(settings(), CALM, {}, 2, False) == [], "a phase without a measurement counts as busy"
    assert advised({"learner/mfu": 0.25}, on_gpu=True) == []


def test_threads_are_held_against_processors_on_a_cpu_only() -> None:
    assert "2 threads sample on 8 processors" in advised({}, cores=8)[0].seen
    assert advised({}, cores=8, on_gpu=True) == []


def test_the_slowest_verifier_is_named() -> None:
    for name in ("answer", "slow"):
        (found,) = advised({"time/verify_s": 3.0, f"verifier/{name}/p50_s": 2.0, f"verifier/{name}/p99_s": 4.0})
        assert f"{name!r} takes 2 s (median) to 4 s (p99)" in found.seen


def test_a_gpu_that_idles_is_told_of() -> None:
    (found,) = advised({"learner/mfu": 0.1}, on_gpu=True)
    assert "10%" in found.seen and "bfloat16" in found.try_next
    assert advised({"learner/mfu": 0.1}, on_gpu=False) == []


def test_a_phase_that_is_mostly_python_needs_more_at_once() -> None:
    (found,) = advice(settings(), CALM, {"generate": 0.3, "learn": 0.9}, 2, False)
    assert (found.phase, found.share) == ("generate", 0.8)
    assert "30%" in found.seen and "group_size" in found.try_next


def test_the_largest_share_comes_first_and_a_small_phase_is_left_alone() -> None:
    found = advised({"learner/padding_share": 0.3, "rollout/completion_tokens_max": 900.0})
    assert [one.phase for one in found] == ["generate", "learn"]
    assert advised({"time/learn_s": 0.5, "learner/compute_s": 0.4, "learner/padding_share": 0.3}) == []
