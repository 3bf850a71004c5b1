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
from grpo.planning.layer_sizes import LayerBytes
from grpo.planning.memory import GIB, add_memory, learner_memory
from grpo.planning.plan_tables import actors_table, new_table
from grpo.planning.policy_shape import PolicyShape, planned_shape, shape_of

TRAIN: dict[str, Any] = {
    "run": {"folder": "run"},
    "policy": {"path": "policy"},
    "data": {"path": "rows.jsonl"},
    "verifiers": [{"name": "answer", "use": "numeric"}],
    "train": {"steps": 1},
}
LAYER = LayerBytes(kept=100, input=10, outside=7, backward=30, again=40)
SHAPE = PolicyShape(
    parameters=1000, trained=1000, cache_bytes=1, vocabulary=10, hidden=2, layers=4, tied=False, layer=LAYER
)


def device_parts(
    policy: PolicyConfig, learner: LearnerConfig, shape: PolicyShape = SHAPE, **more: Any
) -> dict[str, float]:
    return dict(learner_memory(shape, policy, learner, more.pop("algorithm", None), **more).device)


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
    found = device_parts(policy, LearnerConfig.model_validate({"ranks": 4, **learner}))
    assert found["gradients"] == gradients


@pytest.mark.parametrize(
    ("stage", "offload", "there"),
    [
        (3, "none", []),
        # ZeRO-3 sums gradients where its optimizer is. The other stages sum them on the device.
        (3, "optimizer", ["gradients", "optimizer"]),
        (3, "parameters", ["weights", "gradients", "optimizer"]),
        (2, "optimizer", ["optimizer", "copies"]),
    ],
)
def test_what_is_offloaded_is_counted_in_the_host_memory(stage: int, offload: str, there: list[str]) -> None:
    settings = SftConfig.model_validate(
        {
            "run": {"folder": "run"},
            "policy": {"new": {}},
            "data": {"path": "rows.jsonl"},
            "learner": {"zero_stage": stage, "offload": offload},
            "sft": {"steps": 1},
        }
    )
    printed = StringIO()
    Console(file=printed, width=400).print(add_memory(new_table("memory"), settings, planned_shape(settings)))
    lines = {line.split("  ")[1].strip(): line for line in printed.getvalue().splitlines() if "GiB" in line}
    host = lines.get("in the host's memory", "")
    for name in ("weights 0", "gradients 0", "optimizer (", "copies for the step"):
        offloaded = name.split()[0] in there
        there_too = [any(f"{before} {name}" in line for before in ":,") for line in (host, lines["a learner rank"])]
        assert there_too[0] == offloaded
        assert there_too[1] == (not offloaded and not name.startswith("copies"))


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
    shapes: dict[int, PolicyShape | None] = {}
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
        shapes[size] = planned_shape(settings)
    assert told == {1: False, 2: True}
    assert shapes[1] and shapes[2] and shapes[1].layer.kept == 2 * shapes[2].layer.kept
    with pytest.raises(ValueError, match=r"sequence_parallel=3 cannot .* choose one of 1, 2, 4$"):
        shape_of(policy, LearnerConfig(ranks=3, sequence_parallel=3))


def test_a_reference_is_held_whole_by_every_rank_and_not_with_adapters() -> None:
    policy, with_kl = PolicyConfig(path="policy", dtype="bfloat16"), AlgorithmConfig(kl="k3", kl_coefficient=0.1)
    sharded = LearnerConfig(ranks=4, zero_stage=3)
    assert device_parts(policy, sharded, algorithm=with_kl)["reference policy"] == 2000
    assert "reference policy" not in device_parts(policy, sharded, algorithm=AlgorithmConfig())
    adapters = LearnerConfig(ranks=4, zero_stage=3, lora=LoraConfig())
    assert "reference policy" not in device_parts(policy, adapters, algorithm=with_kl)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_the_size_of_a_policy(dtype: str, size: int) -> None:
    new = {"layers": 3, "hidden_size": 32, "heads": 4, "key_value_heads": 2, "alphabet": "0123", "tags": ["<a>"]}
    policy = PolicyConfig.model_validate({"new": new, "dtype": dtype})
    shape = shape_of(policy, LearnerConfig())
    assert shape is not None and shape.trained == shape.parameters
    # Keys and values: 2 heads of 8 each.
    assert shape.cache_bytes == 2 * 3 * 2 * 8 * size
    assert (shape.layers, shape.hidden, shape.vocabulary) == (3, 32, 4 + 1 + 3)


@pytest.mark.parametrize(("share", "kept"), [(0, 4 * 100), (0.25, 3 * 100 + 10), (0.5, 2 * 100 + 20), (1, 4 * 10)])
def test_activations_are_those_of_a_share_of_the_layers(share: float, kept: int) -> None:
    policy = PolicyConfig.model_validate({"path": "policy", "dtype": "bfloat16"})
    small = dataclasses.replace(SHAPE, trained=1)
    parts = device_parts(
        policy, LearnerConfig(zero_stage=3, gradient_checkpointing=share, microbatch_tokens=1, kernels="eager"), small
    )
    # Of the output head: the state of the only token, and its gradient.
    assert parts["activations of a microbatch"] == 7 + kept + 2 * 2 * 2
    assert parts["logits"] == 1.5 * 4 * 10 and parts["gradient of the output head"] == 6 * 10 * 2


def test_tied_embeddings_wait_for_their_gradient() -> None:
    policy = PolicyConfig.model_validate({"path": "policy", "dtype": "bfloat16"})
    for tied in (True, False):
        found = device_parts(policy, LearnerConfig(), dataclasses.replace(SHAPE, tied=tied))
        assert "a layer's backward pass" in found and found.get("gradient of the output head", 0) == 2 * 20 * tied


def test_the_step_copies_gradients() -> None:
    def copied(dtype: str, **learner: Any) -> float:
        policy = PolicyConfig.model_validate({"path": "policy", "dtype": dtype})
        # So many parameters that the bucket is smaller than these copies.
        large = dataclasses.replace(SHAPE, trained=8_000_000_000)
        return device_parts(policy, LearnerConfig(**learner), large)["the step's copies of gradients"]

    # The norm of the embedding's gradient in float64, and one tensor of all gradients where there are several.
    assert copied("bfloat16", zero_stage=3, ranks=4) == 8 * 20 / 4 + 4 * 1e9
    assert copied("float32") == 8 * 20 + 4 * 8e9


def test_the_parts_of_a_learner_rank() -> None:
    policy = PolicyConfig.model_validate({"path": "policy", "dtype": "bfloat16"})
    parts = device_parts(policy, LearnerConfig(ranks=4, zero_stage=1, microbatch_tokens=100))
    assert parts["weights"] == 2000
    # Adam's two moments and a float32 copy, 12 bytes a parameter, sharded among 4 ranks.
    assert parts["optimizer (Adam, float32 weights)"] == 1000 * 12 / 4
    whole = PolicyConfig.model_validate({"path": "policy"})
    # In float32 too, stages 1 and 2 update a copy of the weights, and stage 3 the weights themselves.
    assert device_parts(whole, LearnerConfig())["optimizer (Adam, float32 weights)"] == 12_000
    assert device_parts(whole, LearnerConfig(zero_stage=3))["optimizer (Adam, float32 weights)"] == 8000
    assert device_parts(policy, LearnerConfig(ranks=4, zero_stage=3))["weights"] == 500
    adapted = dataclasses.replace(SHAPE, trained=100)
    assert device_parts(policy, LearnerConfig(lora=LoraConfig()), adapted)["weights"] == 2200


@pytest.mark.parametrize(
    ("learner", "dtype", "elements", "gathered"),
    [
        ({"zero_stage": 1}, "bfloat16", 4 * 5e8, 0),
        ({"zero_stage": 2}, "bfloat16", 2 * 5e8, 0),
        ({"zero_stage": 2, "overlap_comm": True}, "bfloat16", 2 * 2 * 5e8, 0),
        ({"zero_stage": 2}, "float32", 4 * 5e8, 0),
        ({"zero_stage": 3}, "bfloat16", 2 * 2 * 5e8, 2 * 1e9),
    ],
)
def test_what_deepspeed_holds_beside_the_states(
    learner: dict[str, Any], dtype: str, elements: float, gathered: float
) -> None:
    policy = PolicyConfig.model_validate({"path": "policy", "dtype": dtype})
    settings = LearnerConfig.model_validate({"ranks": 4, **learner})
    # A layer so large that its backward pass is the fullest moment.
    layer = dataclasses.replace(LAYER, backward=1e12)
    large = dataclasses.replace(SHAPE, parameters=8_000_000_000, trained=8_000_000_000, layer=layer)
    parts = device_parts(policy, settings, large)
    assert parts["DeepSpeed's buckets"] == elements and parts.get("gathered weights", 0) == gathered
    assert parts["CUDA"] == GIB
    # A CPU has no context, and pages that nobody writes to take no memory.
    on_cpu = device_parts(policy, settings, dataclasses.replace(SHAPE, layer=layer), device="cpu")
    assert "CUDA" not in on_cpu and on_cpu["DeepSpeed's buckets"] == elements / 5e8 * 1000


def test_the_plan_is_that_of_the_fullest_moment() -> None:
    policy = PolicyConfig.model_validate({"path": "policy", "dtype": "bfloat16"})

    def moment(layer: LayerBytes, pushed: float = 0.0, **learner: Any) -> tuple[str, dict[str, float]]:
        shape = dataclasses.replace(SHAPE, layer=layer)
        found = learner_memory(
            shape, policy, LearnerConfig(microbatch_tokens=1, zero_stage=3, **learner), None, "cuda", pushed
        )
        return found.moment, dict(found.device)

    small, one_layer = LayerBytes(1, 1, 1, 1, 1), LayerBytes(1, 1, 1, 5000, 6000)
    assert moment(LayerBytes(1000, 10, 7, 3, 4), kernels="eager")[0] == "the backward pass of the output head"
    assert moment(one_layer)[1]["a layer's backward pass"] == 5000
    assert moment(one_layer, gradient_checkpointing=1)[1]["a layer's backward pass"] == 6000
    assert moment(small, pushed=9000) == ("a push of the weights", moment(small, pushed=9000)[1])
    assert moment(small, pushed=9000)[1]["buckets of a push"] == 9000


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
