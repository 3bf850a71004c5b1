"""The learner under DeepSpeed's choices: how often gradients are reduced, what is offloaded, what stays float32."""

from __future__ import annotations

import math

import pytest
import torch
from ranks_without_ray import Case, Outcome, run_cases, small_comparisons, small_microbatches
from setups_for_tests import without_speed
from transformers import AutoConfig

from grpo.algorithm.preference_loss import PairTotals, preference_terms
from grpo.config import DpoScheduleConfig, LoraConfig, RewardScheduleConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.policy.flops import PolicyFlops
from grpo.policy.logprobs import PolicyLogprobs, load_model

pytestmark = pytest.mark.slow

MICROBATCH = {"reduce_gradients": "microbatch"}
FLOAT32 = {
    "ZeRO-1": Case({"zero_stage": 1, "peak_tflops": 0.5}, steps=3, teacher=True),
    "ZeRO-2": Case({"zero_stage": 2}),
    "ZeRO-1, sleeping": Case({"zero_stage": 1}, steps=3, sleeps=True, resume=True),
    "ZeRO-2, sleeping": Case({"zero_stage": 2}, steps=3, sleeps=True),
    "ZeRO-3, offload, sleeping": Case({"zero_stage": 3, "offload": "optimizer"}, steps=3, sleeps=True),
    "ZeRO-2, overlapped": Case({"zero_stage": 2, "overlap_comm": True}),
    "ZeRO-2, each microbatch": Case({"zero_stage": 2, **MICROBATCH}),
    "ZeRO-3": Case({"zero_stage": 3}, resume=True, teacher=True),
    "ZeRO-3, few logits at a time": Case({"zero_stage": 3}, few_logits=True),
    "ZeRO-3, each microbatch": Case({"zero_stage": 3, **MICROBATCH}),
    "ZeRO-1, offload": Case({"zero_stage": 1, "offload": "optimizer"}, resume=True),
    "ZeRO-2, offload": Case({"zero_stage": 2, "offload": "optimizer"}, resume=True, broken=True),
    "ZeRO-2, offload, each microbatch": Case({"zero_stage": 2, "offload": "optimizer", **MICROBATCH}, resume=True),
    "ZeRO-3, offload": Case({"zero_stage": 3, "offload": "optimizer"}, resume=True),
    "ZeRO-3, all offloaded": Case(
        {"zero_stage": 3, "offload": "parameters", "gradient_checkpointing": True}, resume=True, broken=True
    ),
}
DROPOUT = {"lora": LoraConfig(rank=4, alpha=8, dropout=0.5)}
REFRESHED = AlgorithmConfig(kl="k3", kl_coefficient=0.1, reference_refresh=1)
# What no other setting takes the same steps as.
ODD = {
    "LoRA with dropout, ZeRO-1": Case({"zero_stage": 1, "gradient_checkpointing": True, **DROPOUT}, resume=True),
    "LoRA with dropout, ZeRO-2, offload": Case({"zero_stage": 2, "offload": "optimizer", **DROPOUT}, resume=True),
    "LoRA with dropout, ZeRO-3, offload": Case({"zero_stage": 3, "offload": "optimizer", **DROPOUT}, resume=True),
    "a refreshed reference, ZeRO-3": Case({"zero_stage": 3}, algorithm=REFRESHED, resume=True, refreshes=True),
}
BFLOAT16 = {
    "bfloat16, ZeRO-1": Case({"zero_stage": 1}, "bfloat16", resume=True),
    "bfloat16, ZeRO-1, offload": Case({"zero_stage": 1, "offload": "optimizer"}, "bfloat16"),
    "bfloat16, ZeRO-2": Case({"zero_stage": 2}, "bfloat16"),
    "bfloat16, ZeRO-2, sleeping": Case({"zero_stage": 2}, "bfloat16", sleeps=True),
    "bfloat16, ZeRO-2, offload": Case({"zero_stage": 2, "offload": "optimizer"}, "bfloat16", resume=True),
    "bfloat16, ZeRO-3": Case({"zero_stage": 3}, "bfloat16"),
}
# Steps on pairs and rankings of answers.
DPO = DpoScheduleConfig(steps=3, sft_weight=0.2, label_smoothing=0.1)
PREFERENCES = {
    "preferences, ZeRO-1": Case({"zero_stage": 1}, preference=DPO),
    "preferences, ZeRO-2": Case({"zero_stage": 2}, preference=DPO, resume=True),
    "preferences, ZeRO-3": Case({"zero_stage": 3}, preference=DPO, resume=True),
    "preferences, ranks that share": Case({"zero_stage": 2, "sequence_parallel": 2}, preference=DPO),
}
PREFERENCES_OF_ADAPTERS = {
    "preferences, LoRA": Case({"zero_stage": 2, "lora": LoraConfig(rank=4, alpha=8)}, preference=DPO, resume=True)
}
# Steps of a reward model on the same pairs and rankings.
REWARD = RewardScheduleConfig(steps=3, center=0.1)
REWARDS = {
    "reward, ZeRO-1": Case({"zero_stage": 1}, preference=REWARD, steps=3),
    "reward, ZeRO-2": Case({"zero_stage": 2}, preference=REWARD, steps=3),
    "reward, ZeRO-3": Case({"zero_stage": 3}, preference=REWARD, steps=3, resume=True, few_logits=True),
    "reward, LoRA": Case({"zero_stage": 3, "lora": LoraConfig(rank=4, alpha=8)}, preference=REWARD, resume=True),
}
ALL = FLOAT32 | ODD | BFLOAT16 | PREFERENCES | PREFERENCES_OF_ADAPTERS | REWARDS


@pytest.fixture(scope="module")
def outcomes(tied_policy: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return run_cases(tied_policy, tmp_path_factory.mktemp("cases"), ALL)


@pytest.mark.parametrize("name", list(FLOAT32))
def test_every_choice_takes_the_same_steps(outcomes: dict[str, Outcome], name: str) -> None:
    for found, expected in zip(outcomes[name].metrics, outcomes["ZeRO-1"].metrics, strict=False):
        if found["skipped_steps"] == 0:
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)


def test_a_teacher_scores_alike_at_each_stage_and_learns_nothing(
    outcomes: dict[str, Outcome], tied_policy: str
) -> None:
    # The teacher is the policy before its first step.
    start = PolicyLogprobs(load_model(tied_policy, "float32"))
    part = small_microbatches(9, 2, FLOAT32["ZeRO-1"].group_size).ranks[0].microbatches
    with torch.no_grad():
        expected = torch.cat([start(microbatch, 1.0)[0] for microbatch in part])
    for name in ("ZeRO-1", "ZeRO-3"):
        policy, teacher = outcomes[name].scored[0], outcomes[name].scored[-1]
        assert torch.cat(teacher) == pytest.approx(expected, abs=1e-5), name
        assert float((torch.cat(policy) - expected).abs().mean()) > 1e-3, name


def test_preferences_take_the_same_steps_on_any_stage_and_split(outcomes: dict[str, Outcome], tied_policy: str) -> None:
    whole = small_comparisons(0, 1)
    policy = PolicyLogprobs(load_model(tied_policy, "float32"))
    totals = PairTotals()
    for microbatch in whole.ranks[0].microbatches:
        terms = preference_terms(DPO, microbatch, policy(microbatch, 1.0)[0])
        (terms.loss_sum / whole.ranks[0].denominator).backward()  # type: ignore[no-untyped-call]
        totals.add(terms)
    totals.read()
    first = totals.metrics(whole.ranks[0].denominator)
    first["gradient_norm"] = float(
        torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    )
    assert len(whole.ranks[0].microbatches) > 2 and first["gradient_norm"] > 1e-2
    for name in PREFERENCES:
        found, expected = (without_speed(outcomes[each].metrics[1]) for each in (name, "preferences, ZeRO-1"))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        step = outcomes[name].metrics[0]
        assert {key: step[key] for key in first} == pytest.approx(first, rel=1e-4, abs=1e-6), name
    # A new adapter changes nothing yet, so only the gradient differs.
    adapted = outcomes["preferences, LoRA"].metrics
    assert adapted[0]["logps/chosen"] == pytest.approx(first["logps/chosen"], rel=1e-5)
    assert adapted[1]["skipped_steps"] == 0


def test_a_reward_model_takes_the_same_steps_on_any_stage(outcomes: dict[str, Outcome]) -> None:
    for name in ("reward, ZeRO-2", "reward, ZeRO-3"):
        for found, expected in zip(outcomes[name].metrics, outcomes["reward, ZeRO-1"].metrics, strict=True):
            assert without_speed(found) == pytest.approx(without_speed(expected), rel=1e-4, abs=1e-6), name
    for name in REWARDS:
        # The head is 0 at first, so the model guesses, and only the head has a gradient.
        first, second = outcomes[name].metrics[:2]
        assert first["loss"] == pytest.approx(math.log(2)) and first["rewards/margins"] == 0
        assert first["gradient_norm"] > 1e-3 and second["rewards/margins"] > 1e-4
        assert outcomes[name].weights["score.weight"].any()


def test_gradients_are_reduced_once_per_step_where_asked_for(outcomes: dict[str, Outcome]) -> None:
    # Of 60,000 weights; beside them a few numbers of metrics and norms are reduced.
    once = outcomes["ZeRO-1"].reduced
    for name in ("ZeRO-2", "ZeRO-2, overlapped", "ZeRO-3", "ZeRO-2, offload", "ZeRO-3, all offloaded"):
        assert outcomes[name].reduced == pytest.approx(once, rel=0.01), name
    for name in ("ZeRO-2, each microbatch", "ZeRO-3, each microbatch", "bfloat16, ZeRO-2", "bfloat16, ZeRO-3"):
        assert outcomes[name].reduced > 4 * once, name
    assert outcomes["bfloat16, ZeRO-1"].reduced == pytest.approx(once, rel=0.01)


@pytest.mark.parametrize("name", list(BFLOAT16))
def test_gradients_and_weights_of_bfloat16_are_kept_in_float32(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].fine_gradients > 0.5
    assert outcomes[name].fine_weights > 0.5


@pytest.mark.parametrize("stage", [1, 2])
def test_offload_changes_nothing_in_bfloat16(outcomes: dict[str, Outcome], stage: int) -> None:
    plain, offloaded = (outcomes[f"bfloat16, ZeRO-{stage}{how}"].metrics for how in ("", ", offload"))
    for found, expected in zip(offloaded, plain, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)


def test_sleeping_changes_nothing_in_bfloat16(outcomes: dict[str, Outcome]) -> None:
    plain, slept = (outcomes[f"bfloat16, ZeRO-2{how}"].metrics for how in ("", ", sleeping"))
    assert [without_speed(one) for one in slept] == [without_speed(one) for one in plain]


@pytest.mark.parametrize("name", [name for name, case in ALL.items() if case.resume])
def test_state_resumes_to_the_bit(outcomes: dict[str, Outcome], name: str) -> None:
    went_on, resumed = outcomes[name].resumed
    assert without_speed(resumed) == without_speed(went_on)


@torch.no_grad()
def test_dropout_is_of_training_alone(outcomes: dict[str, Outcome], tied_policy: str) -> None:
    found = outcomes["LoRA with dropout, ZeRO-1"]
    # The same gradient under the same dropout, which ranks of another stage draw alike.
    other = outcomes["LoRA with dropout, ZeRO-2, offload"]
    assert without_speed(found.metrics[0]) == pytest.approx(without_speed(other.metrics[0]), rel=1e-4)
    merged = PolicyLogprobs(load_model(tied_policy, "float32")).eval()
    merged.model.load_state_dict(found.weights)
    for microbatch, logprobs_T in zip(small_microbatches(9, 2).ranks[0].microbatches, found.scored[0], strict=True):
        torch.testing.assert_close(logprobs_T, merged(microbatch, 1.0)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in FLOAT32.items() if case.broken])
def test_a_step_that_is_not_finite_is_not_taken_with_offload(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].metrics[-1]["skipped_steps"] == 1
    # The step after it is an ordinary one.
    assert outcomes[name].resumed[0]["skipped_steps"] == 0


def test_speed_is_of_all_ranks(outcomes: dict[str, Outcome], tied_policy: str) -> None:
    parts = small_microbatches(1, 2).ranks
    sizes = PolicyFlops.of(AutoConfig.from_pretrained(tied_policy))
    tokens = sum(len(one.input_ids_N) for part in parts for one in part.microbatches)
    flops = sum(sizes.training(one) for part in parts for one in part.microbatches)
    found = outcomes["ZeRO-1"].metrics[1]
    assert found["tokens_per_s"] * found["compute_s"] == pytest.approx(tokens)
    assert found["tflops_per_s"] * found["compute_s"] == pytest.approx(flops / 2 / 1e12)
    assert found["mfu"] == pytest.approx(found["tflops_per_s"] / 0.5)
    assert 0.05 < found["peak_memory_gib"] < 20
    # Nobody can say what a CPU could do at most.
    assert "mfu" not in outcomes["ZeRO-2"].metrics[1]
