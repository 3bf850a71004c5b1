"""What `grpo check` says of memory."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from grpo.config import LearnerConfig, Policy, SftConfig, TrainConfig
from grpo.objective_config import Algorithm
from grpo.plan import Shape, _actors, _memory, lag_warning, learner_bytes, shape_of

SHAPE = Shape(parameters=1000, trained=1000, cache_bytes=1, activation_bytes=1)


@pytest.mark.parametrize(
    ("learner", "dtype", "gradients"),
    [
        # Whole until the one reduction; a share where each microbatch is reduced.
        ({"zero_stage": 2}, "float32", 4000),
        ({"zero_stage": 2}, "bfloat16", 1000),
        ({"zero_stage": 1}, "bfloat16", 4000),
        ({"zero_stage": 3, "reduce_gradients": "microbatch"}, "float32", 1000),
    ],
)
def test_gradients_are_whole_where_they_are_reduced_once(learner: dict[str, Any], dtype: str, gradients: int) -> None:
    policy = Policy.model_validate({"path": "policy", "dtype": dtype})
    found = learner_bytes(SHAPE, policy, LearnerConfig.model_validate({"ranks": 4, **learner}))
    assert found["gradients"] == gradients


@pytest.mark.parametrize(
    ("offload", "there"),
    [("none", []), ("optimizer", ["optimizer"]), ("parameters", ["weights", "optimizer"])],
)
def test_what_is_offloaded_is_counted_in_the_host_memory(offload: str, there: list[str]) -> None:
    settings = SftConfig.model_validate(
        {
            "run": {"folder": "run"},
            "policy": {"new": {}},
            "data": {"path": "rows.jsonl"},
            "learner": {"zero_stage": 3, "offload": offload},
            "sft": {"steps": 1},
        }
    )
    printed = StringIO()
    Console(file=printed, width=400).print(_memory(settings))
    lines = {line.split("  ")[1].strip(): line for line in printed.getvalue().splitlines() if "GiB" in line}
    host = lines.get("in the host's memory", "")
    for name in ("weights 0", "gradients 0", "optimizer ("):
        offloaded = name.split()[0] in there
        assert (f" {name}" in host) == offloaded
        assert (f" {name}" in lines["a learner rank"]) != offloaded


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({}, "Set algorithm.preset=cispo"),
        ({"preset": "gspo"}, "the edges of algorithm.ratio=sequence"),
        ({"proximal": "recomputed"}, "set algorithm.importance_weight=token"),
        # The ratio of a recomputed proximal policy is 1 at first, whatever sampled.
        ({"preset": "cispo", "proximal": "recomputed"}, "set algorithm.importance_weight=token"),
        ({"preset": "cispo"}, None),
        ({"mismatch_mask": "token"}, None),
        ({"proximal": "recomputed", "importance_weight": "token"}, None),
        ({"proximal": "recomputed", "mismatch_mask": "geometric"}, None),
    ],
)
def test_an_objective_that_does_not_correct_for_lag_is_warned_of(algorithm: dict[str, Any], said: str | None) -> None:
    settings = TrainConfig.model_validate(
        {
            "run": {"folder": "run"},
            "policy": {"path": "policy"},
            "data": {"path": "rows.jsonl"},
            "verifiers": [{"name": "answer", "use": "numeric"}],
            "rollout": {"max_policy_lag": 2},
            "algorithm": Algorithm.model_validate(algorithm),
            "train": {"steps": 1},
        }
    )
    warning = lag_warning(settings)
    assert (warning is None) if said is None else (said in (warning or "") and "max_policy_lag=2" in (warning or ""))
    on_policy = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"max_policy_lag": 0})})
    assert lag_warning(on_policy) is None


def test_ranks_that_share_a_microbatch_are_told_and_hold_a_part_of_it() -> None:
    policy, told = Policy.model_validate({"new": {"heads": 4, "key_value_heads": 2}}), {}
    for size in (1, 2):
        learner = {"ranks": 4, "sequence_parallel": size, "microbatch_tokens": 4096}
        settings = SftConfig.model_validate(
            {
                "run": {"folder": "run"},
                "policy": policy.model_dump(),
                "data": {"path": "rows.jsonl"},
                "learner": learner,
                "sft": {"steps": 1},
            }
        )
        printed = StringIO()
        Console(file=printed, width=400).print(_actors(settings))
        told[size] = "2 share each microbatch" in printed.getvalue()
        found = learner_bytes(SHAPE, policy, settings.learner)
        assert found["activations of a microbatch"] == 4096 / size
    assert told == {1: False, 2: True}
    with pytest.raises(ValueError, match=r"sequence_parallel=3 cannot .* choose one of 1, 2, 4$"):
        shape_of(policy, LearnerConfig(ranks=3, sequence_parallel=3))
