"""What `grpo check` says of memory."""

from __future__ import annotations

import dataclasses
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from grpo.cluster.claim import idle_gpus
from grpo.config import LearnerConfig, LoraConfig, PolicyConfig, SftConfig, TrainConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.planning.check import lag_warning
from grpo.planning.memory import GIB, Memory, PolicyShape, add_memory, learner_bytes, memory_warning, shape_of
from grpo.planning.plan_tables import actors_table, new_table

TRAIN: dict[str, Any] = {
    "run": {"folder": "run"},
    "policy": {"path": "policy"},
    "data": {"path": "rows.jsonl"},
    "verifiers": [{"name": "answer", "use": "numeric"}],
    "train": {"steps": 1},
}
SHAPE = PolicyShape(parameters=1000, trained=1000, cache_bytes=1, activation_bytes=1, vocabulary=10)


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
    policy = PolicyConfig.model_validate({"path": "policy", "dtype": dtype})
    found = learner_bytes(SHAPE, policy, LearnerConfig.model_validate({"ranks": 4, **learner}), None)
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
    Console(file=printed, width=400).print(
        add_memory(new_table("memory"), settings, shape_of(settings.policy, settings.learner))
    )
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
        ({"preset": "gspo"}, "algorithm.ratio=sequence bounds the change"),
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
        {**TRAIN, "rollout": {"max_policy_lag": 2}, "algorithm": AlgorithmConfig.model_validate(algorithm)}
    )
    warning = lag_warning(settings)
    assert (warning is None) if said is None else (said in (warning or "") and "max_policy_lag=2" in (warning or ""))
    on_policy = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"max_policy_lag": 0})})
    assert lag_warning(on_policy) is None


def test_ranks_that_share_a_microbatch_are_told_and_hold_a_part_of_it() -> None:
    policy, told = PolicyConfig.model_validate({"new": {"heads": 4, "key_value_heads": 2}}), {}
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
        Console(file=printed, width=400).print(actors_table(settings))
        told[size] = "2 share each microbatch" in printed.getvalue()
        found = learner_bytes(SHAPE, policy, settings.learner, None)
        assert found["activations of a microbatch"] == 4096 / size
    assert told == {1: False, 2: True}
    with pytest.raises(ValueError, match=r"sequence_parallel=3 cannot .* choose one of 1, 2, 4$"):
        shape_of(policy, LearnerConfig(ranks=3, sequence_parallel=3))


def test_a_reference_is_held_whole_by_every_rank_and_not_with_adapters() -> None:
    policy, with_kl = PolicyConfig(path="policy", dtype="bfloat16"), AlgorithmConfig(kl="k3", kl_coefficient=0.1)
    sharded = LearnerConfig(ranks=4, zero_stage=3)
    assert learner_bytes(SHAPE, policy, sharded, with_kl)["reference policy"] == 2000
    assert "reference policy" not in learner_bytes(SHAPE, policy, sharded, AlgorithmConfig())
    adapters = LearnerConfig(ranks=4, zero_stage=3, lora=LoraConfig())
    assert "reference policy" not in learner_bytes(SHAPE, policy, adapters, with_kl)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(("checkpointing", "kept"), [(False, 3 * 17), (True, 3), (0.3, 2 * 17 + 1), (0.7, 17 + 2)])
def test_the_size_of_a_policy(dtype: str, size: int, checkpointing: float, kept: int) -> None:
    new = {"layers": 3, "hidden_size": 32, "heads": 4, "key_value_heads": 2, "alphabet": "0123", "tags": ["<a>"]}
    policy = PolicyConfig.model_validate({"new": new, "dtype": dtype})
    shape = shape_of(policy, LearnerConfig(gradient_checkpointing=checkpointing))
    assert shape is not None and shape.trained == shape.parameters
    # Keys and values: 2 heads of 8 each. Activations: 34 bytes a hidden unit in half precision, or the input alone.
    assert shape.cache_bytes == 2 * 3 * 2 * 8 * size
    assert shape.activation_bytes == kept * 32 * size
    assert shape.vocabulary == 4 + 1 + 3


def test_the_parts_of_a_learner_rank() -> None:
    policy = PolicyConfig.model_validate({"path": "policy", "dtype": "bfloat16"})
    ranks = LearnerConfig(ranks=4, zero_stage=1, microbatch_tokens=100)
    parts = learner_bytes(SHAPE, policy, ranks, None)
    assert parts["weights"] == 2000 and parts["activations of a microbatch"] == 100
    # Adam's two moments and a float32 copy, 12 bytes a parameter, sharded among 4 ranks.
    assert parts["optimizer (Adam, float32 weights)"] == 1000 * 12 / 4
    whole = PolicyConfig.model_validate({"path": "policy"})
    assert learner_bytes(SHAPE, whole, LearnerConfig(), None)["optimizer (Adam, float32 weights)"] == 8000
    assert learner_bytes(SHAPE, policy, LearnerConfig(ranks=4, zero_stage=3), None)["weights"] == 500
    adapted = dataclasses.replace(SHAPE, trained=100)
    assert learner_bytes(adapted, policy, LearnerConfig(lora=LoraConfig()), None)["weights"] == 2200


def test_logits_are_those_of_a_microbatch_and_no_more_than_a_chunk() -> None:
    policy, learner = PolicyConfig(path="policy"), LearnerConfig(microbatch_tokens=4096)
    assert learner_bytes(SHAPE, policy, learner, None)["logits"] == 3 * 4096 * 10 * 4
    large = dataclasses.replace(SHAPE, vocabulary=150_000)
    assert learner_bytes(large, policy, learner, None)["logits"] == 3 << 28


@pytest.mark.parametrize(
    ("keys", "memory", "told"),
    [
        ({"device": "cpu"}, Memory(None, 100 * GIB), None),
        ({"device": "cpu"}, Memory(None, 30 * GIB), "this machine has 30.0 GiB free: lower learner.microbatch"),
        # Somewhere else nothing is known.
        ({"device": "cpu", "address": "ray://there"}, Memory(None, 1), None),
        ({"device": "gpu"}, Memory(None, 1), None),
        ({"device": "gpu"}, Memory(40 * GIB, 100 * GIB), None),
        ({"device": "gpu"}, Memory(30 * GIB, 100 * GIB), "a learner rank needs about 32.0 GiB"),
        ({"device": "gpu"}, Memory(8 * GIB, 100 * GIB), "generator.gpu_memory_share=0.85 leaves"),
        # Beside a generator there is less.
        ({"device": "gpu", "share_gpus": True}, Memory(40 * GIB, 100 * GIB), "lower generator.gpu_memory_share"),
        ({"device": "gpu", "share_gpus": True, "sleep": True}, Memory(40 * GIB, 100 * GIB), None),
    ],
)
def test_what_does_not_fit_is_told_with_a_remedy(keys: dict[str, Any], memory: Memory, told: str | None) -> None:
    settings = TrainConfig.model_validate({**TRAIN, "cluster": keys})
    # 8 GiB of weights, as much of gradients, twice as much of Adam's.
    shape = PolicyShape(2 * GIB, 2 * GIB, cache_bytes=1, activation_bytes=0, vocabulary=1)
    warning = memory_warning(settings, shape, memory)
    assert (warning is None) if told is None else told in (warning or ""), warning


@pytest.mark.parametrize(
    ("launch", "device", "told"),
    [
        ({"nodes": 2, "gpus_per_node": 8}, "auto",
         ["launch books 16 GPUs (launch.nodes=2 x launch.gpus_per_node=8), but the job uses 2: 1 for learner.ranks + 1 "
          "for generator.replicas; 14 stay idle. Raise learner.ranks or generator.replicas, or lower launch.nodes"]),
        ({"nodes": 1, "gpus_per_node": 2}, "auto", []),
        ({"nodes": 1, "gpus_per_node": 0}, "auto", []),
        ({"nodes": 1, "gpus_per_node": 2}, "cpu", ["cluster.device=cpu uses none of them; 2 stay idle"]),
        ({"nodes": 1, "gpus_per_node": 1, "generators": {"nodes": 1, "gpus_per_node": 4, "cpus_per_node": 8}}, "gpu",
         ["launch.generators books 4 GPUs"]),
    ],
)  # fmt: skip
def test_booked_gpus_that_nobody_uses_are_warned_of(launch: dict[str, Any], device: str, told: list[str]) -> None:
    settings = TrainConfig.model_validate(
        {**TRAIN, "cluster": {"device": device}, "launch": {"cpus_per_node": 8, **launch}}
    )
    warnings = idle_gpus(settings)
    assert len(warnings) == len(told)
    assert all(part in warning for part, warning in zip(told, warnings, strict=True)), warnings
