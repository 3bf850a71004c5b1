"""Ranks that share each microbatch's tokens take the step that one rank takes alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ranks_without_ray import Case, Outcome, run_cases
from setups_for_tests import without_speed

from grpo.config import LoraConfig, NewPolicyConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.policy.new import make_policy

pytestmark = [pytest.mark.slow, pytest.mark.long]

TOKEN = AlgorithmConfig(kl="k3", kl_coefficient=0.1, entropy_coefficient=0.05)
GSPO = AlgorithmConfig(ratio="sequence", clip_low=0.5, clip_high=0.5)
# The geometric mean of clipped ratios, weighted by the ratio of whole sequences.
GMPO = AlgorithmConfig(ratio="geometric", importance_weight="sequence", clip_low=0.4, clip_high=0.4)
# What is trained, with the ZeRO stage and more of the shared ranks' settings.
OBJECTIVES = {
    "token, ZeRO-1": (TOKEN, {"zero_stage": 1}),
    "token, ZeRO-3": (TOKEN, {"zero_stage": 3, "gradient_checkpointing": True}),
    "sequence, ZeRO-1": (GSPO, {"zero_stage": 1}),
    "sequence, ZeRO-3": (GSPO, {"zero_stage": 3}),
    "geometric, ZeRO-2, offload": (GMPO, {"zero_stage": 2, "offload": "optimizer"}),
    "LoRA, ZeRO-2": (TOKEN, {"zero_stage": 2, "lora": LoraConfig(rank=4, alpha=8)}),
}
# How many ranks there are, how many of them share a microbatch, and what is tried with them.
WORLDS: dict[str, tuple[int, int, list[str]]] = {
    "one rank": (1, 1, list(OBJECTIVES)),
    "two ranks share": (2, 2, list(OBJECTIVES)),
    "two times two ranks share": (4, 2, ["token, ZeRO-3", "sequence, ZeRO-1"]),
}
SHARED = [(world, name) for world, (_, size, names) in WORLDS.items() if size > 1 for name in names]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("shared")
    shape = NewPolicyConfig(
        hidden_size=64, layers=2, heads=4, key_value_heads=2, intermediate_size=96, max_position=256
    )
    make_policy(shape, [], folder / "policy", seed=3)

    def run(ranks: int, size: int, names: list[str]) -> dict[str, Outcome]:
        cases = {}
        for name in names:
            algorithm, settings = OBJECTIVES[name]
            learner = {**settings, "sequence_parallel": size}
            cases[name] = Case(learner, algorithm=algorithm, group_size=4, resume=size > 1, broken=size > 1)
        return run_cases(str(folder / "policy"), folder / f"{ranks}_{size}", cases, ranks)

    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(run, *world) for name, world in WORLDS.items()}
        return {name: one.result() for name, one in running.items()}


@pytest.mark.parametrize(("world", "name"), SHARED)
def test_shared_tokens_take_the_step_of_one_rank(
    outcomes: dict[str, dict[str, Outcome]], world: str, name: str
) -> None:
    alone, shared = outcomes["one rank"][name], outcomes[world][name]
    for found, expected in zip(shared.metrics[:2], alone.metrics[:2], strict=True):
        assert found["gradient_norm"] > 0.01
        for key, value in without_speed(expected).items():
            assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    for tensor, expected in alone.weights.items():
        # As for ranks that share nothing: Adam moves single elements by float noise.
        assert float((shared.weights[tensor] - expected).abs().mean()) < 1e-5, tensor


def test_shared_tokens_are_scored_as_by_one_rank(outcomes: dict[str, dict[str, Outcome]]) -> None:
    for name in OBJECTIVES:
        for found, expected in zip(
            outcomes["two ranks share"][name].scored, outcomes["one rank"][name].scored, strict=True
        ):
            assert len(found) == len(expected) > 1
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("world", "name"), SHARED)
def test_a_state_of_shared_ranks_resumes_to_the_bit(
    outcomes: dict[str, dict[str, Outcome]], world: str, name: str
) -> None:
    broken, (went_on, resumed) = outcomes[world][name].metrics[-1], outcomes[world][name].resumed
    assert broken["skipped_steps"] == 1 and went_on["skipped_steps"] == 0
    assert without_speed(resumed) == without_speed(went_on)
