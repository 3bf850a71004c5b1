"""Agreement with the published functions of TRL and verl, where they are installed.

Both lay sequences out side by side, [B, L] with a mask, and here they are packed. Where definitions differ
(docs/objectives.md, "Beside other implementations"), the test says what is done about it.
"""

from __future__ import annotations

import math
import types
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.algorithm import losses
from grpo.algorithm.choices import advantages_of, aggregation_of
from grpo.algorithm.objective import policy_terms
from grpo.algorithm.packing import TrainingSequence, pack
from grpo.config.algorithm import AlgorithmConfig

LENGTHS = (3, 7, 5, 1)
LONGEST = max(LENGTHS)
# Both signs, for each of which some ratios lie beyond each edge.
ADVANTAGES = (1.3, -0.7, 0.4, -1.0)
LOW, HIGH = 0.15, 0.25


def rows(seed: int, scale: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-1.5 + scale * torch.randn(length, generator=generator) for length in LENGTHS]


OLD = rows(1, 0.3)
# Ratios from about 0.5 to 2.
NEW = [old + shift + 1.5 for old, shift in zip(OLD, rows(9, 0.35), strict=True)]
REFERENCE = rows(3, 0.4)


def padded(values: list[Tensor]) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, LONGEST - len(row))) for row in values])


MASK = padded([torch.ones(length) for length in LENGTHS])


def ours(keys: dict[str, Any]) -> tuple[float, Tensor]:
    """The loss of the four completions (two groups of two), and its gradient by their log-probabilities, [B, L]."""
    algorithm = AlgorithmConfig.model_validate({"clip_low": LOW, "clip_high": HIGH, **keys})
    groups = [list(LENGTHS[:2]), list(LENGTHS[2:])]
    weights, denominator = aggregation_of(algorithm, LONGEST)(groups)
    batch = pack(
        [
            TrainingSequence(tuple(range(length + 1)), 1, tuple(old.tolist()), advantage, weight)
            for length, old, advantage, weight in zip(LENGTHS, OLD, ADVANTAGES, sum(weights, []), strict=True)  # noqa: RUF017
        ]
    )
    logprobs_T = torch.cat(NEW).requires_grad_()
    reference_T = torch.cat(REFERENCE) if algorithm.kl_in_loss else None
    terms = policy_terms(algorithm, batch, logprobs_T, torch.zeros_like(logprobs_T), reference_T)
    loss = terms.loss_sum / denominator
    (gradient_T,) = torch.autograd.grad(loss, logprobs_T)
    return float(loss.detach()), padded(list(torch.split(gradient_T, batch.lengths_S.tolist())))


def assert_agrees(keys: dict[str, Any], theirs: Tensor, logprobs_BL: Tensor) -> None:
    loss, gradient_BL = ours(keys)
    assert loss == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-7)
    (expected_BL,) = torch.autograd.grad(theirs, logprobs_BL)
    assert float(expected_BL.abs().max()) > 1e-3
    torch.testing.assert_close(gradient_BL, expected_BL * MASK, rtol=1e-5, atol=1e-7)


def trl_loss(logprobs_BL: Tensor, loss_type: str, **settings: Any) -> Tensor:
    """TRL's own loss, on a trainer that has nothing but the settings which that reads."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    arguments = {"delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "steps_per_generation": 1}
    arguments |= {"sapo_temperature_neg": 1.05}
    own = {key: settings.pop(key) for key in list(settings) if key in arguments}
    entropies_BL = torch.zeros_like(MASK)
    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs_BL, entropies_BL, None),
        args=types.SimpleNamespace(**arguments | own),
        accelerator=types.SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        model=types.SimpleNamespace(training=True),
        loss_type=loss_type,
        _metrics={"train": defaultdict(list)},
        **{
            "aux_loss_enabled": False,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "epsilon_low": LOW,
            "epsilon_high": HIGH,
            "use_vllm": False,
            "vllm_importance_sampling_correction": False,
            "_entropy_bonus_enabled": False,
            "current_gradient_accumulation_steps": 1,
            "max_completion_length": LONGEST,
        }
        | settings,
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros(4, LONGEST, dtype=torch.long),
        "completion_mask": MASK,
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": padded(OLD),
        "ref_per_token_logps": padded(REFERENCE),
        "num_items_in_batch": MASK.sum(),
    }
    loss: Tensor = grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


@pytest.mark.parametrize(
    ("keys", "loss_type", "settings"),
    [
        ({"aggregation": "token_mean"}, "dapo", {}),
        ({"aggregation": "sequence_mean"}, "grpo", {}),
        ({"aggregation": "constant"}, "dr_grpo", {}),
        ({"ratio": "sequence", "aggregation": "sequence_mean"}, "grpo", {"importance_sampling_level": "sequence"}),
        ({"ratio": "soft", "aggregation": "sequence_mean"}, "sapo", {}),
        # Its upper edge is the ratio itself, and it has no lower one.
        ({"ratio": "cispo", "clip_low": 1.0, "clip_high": 0.2}, "cispo", {"epsilon_high": 1.2}),
        ({"aggregation": "sequence_mean", "kl": "k3", "kl_coefficient": 0.1}, "grpo", {"beta": 0.1}),
        (
            {"kl": "k3", "kl_coefficient": 0.1, "kl_corrected": True},
            "dapo",
            {"beta": 0.1, "use_bias_correction_kl": True},
        ),
    ],
)
def test_losses_are_trl_s(keys: dict[str, Any], loss_type: str, settings: dict[str, Any]) -> None:
    logprobs_BL = padded(NEW).requires_grad_()
    assert_agrees(keys, trl_loss(logprobs_BL, loss_type, **settings), logprobs_BL)


def verl_config(**keys: Any) -> Any:
    workers = pytest.importorskip("verl.workers.config")
    return workers.ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=LOW,
        **{"clip_ratio_low": LOW, "clip_ratio_high": HIGH} | keys,
    )


@pytest.mark.parametrize(
    ("name", "keys", "mode", "more"),
    [
        # It has the third edge always; 3 lies beyond every ratio here.
        ("vanilla", {"dual_clip": 3.0}, "token-mean", {}),
        ("vanilla", {"dual_clip": 1.3}, "token-mean", {"clip_ratio_c": 1.3}),
        ("vanilla", {"dual_clip": 3.0, "aggregation": "sequence_mean"}, "seq-mean-token-mean", {}),
        ("vanilla", {"dual_clip": 3.0, "aggregation": "constant"}, "seq-mean-token-sum-norm", {}),
        ("gspo", {"ratio": "sequence", "aggregation": "sequence_mean"}, "seq-mean-token-mean", {}),
        ("gspo", {"ratio": "sequence_token", "aggregation": "token_mean"}, "token-mean", {}),
        ("cispo", {"ratio": "cispo"}, "token-mean", {}),
        (
            "sapo",
            {"ratio": "soft", "aggregation": "sequence_mean", "soft_temperature_negative": 1.4},
            "seq-mean-token-mean",
            {"tau_neg": 1.4},
        ),
        # Its edges are distances of the logarithm from 0.
        (
            "geo_mean",
            {
                "ratio": "geometric",
                "aggregation": "sequence_mean",
                "clip_low": 1 - math.exp(-0.2),
                "clip_high": math.exp(0.3) - 1,
            },
            "seq-mean-token-mean",
            {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3},
        ),
    ],
)
def test_losses_are_verl_s(name: str, keys: dict[str, Any], mode: str, more: dict[str, Any]) -> None:
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    logprobs_BL = padded(NEW).requires_grad_()
    advantages_BL = torch.tensor(ADVANTAGES)[:, None].expand(-1, LONGEST)
    loss, _ = core_algos.get_policy_loss_fn(name)(
        padded(OLD), logprobs_BL, advantages_BL, MASK, loss_agg_mode=mode, config=verl_config(**more)
    )
    assert_agrees(keys, loss, logprobs_BL)


REWARDS = [[1.0, 0.0, 0.0, 0.5], [0.0, 0.2, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]]


def our_advantages(name: str) -> Tensor:
    rewards_PG = torch.tensor(REWARDS)
    algorithm = AlgorithmConfig.model_validate({"advantage": name})
    return advantages_of(algorithm, rewards_PG, torch.ones_like(rewards_PG, dtype=torch.bool)).flatten()


@pytest.mark.parametrize(
    ("name", "function", "more"),
    [
        ("group_std", "compute_grpo_outcome_advantage", {"epsilon": 0.0}),
        ("group_mean", "compute_grpo_outcome_advantage", {"norm_adv_by_std_in_grpo": False}),
        ("leave_one_out", "compute_rloo_outcome_advantage", {}),
        # These normalise over tokens and not over completions, which is the same where all are of one length.
        ("reinforce++", "compute_reinforce_plus_plus_outcome_advantage", {"config": types.SimpleNamespace(gamma=1.0)}),
        ("reinforce++_baseline", "compute_reinforce_plus_plus_baseline_outcome_advantage", {}),
    ],
)
def test_advantages_are_verl_s(name: str, function: str, more: dict[str, Any]) -> None:
    np = pytest.importorskip("numpy")
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    scores_B1 = torch.tensor(REWARDS).flatten()[:, None].clone()
    index = {} if name == "reinforce++" else {"index": np.repeat(np.arange(3), 4)}
    found, _ = getattr(core_algos, function)(scores_B1, torch.ones_like(scores_B1), **index, **more)
    torch.testing.assert_close(our_advantages(name), found[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "theirs"), [("k1", "kl"), ("k2", "mse"), ("k3", "low_var_kl")])
def test_divergences_are_verl_s(name: Any, theirs: str) -> None:
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    new, reference = torch.cat(NEW), torch.cat(REFERENCE)
    expected = core_algos.kl_penalty_forward(new, reference, theirs)
    torch.testing.assert_close(losses.KLS[name](new, reference), expected)
