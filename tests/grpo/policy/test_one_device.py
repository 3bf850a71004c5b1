"""A learner's step on a GPU has no operator that mixes devices. The meta device stands in for the GPU."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from device_mixing import META, MixedDevices, OneDevice
from setups_for_tests import random_sequences
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from grpo.algorithm.objective import policy_terms, supervised_terms
from grpo.algorithm.packing import Microbatch, TrainingSequence, pack
from grpo.algorithm.totals import Totals
from grpo.config.algorithm import KL, AlgorithmConfig, Ratio
from grpo.config.presets import PRESETS
from grpo.policy.attention import PACKED, PackedLayout, VarlenLayout
from grpo.policy.logprobs import PolicyLogprobs

SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
POLICIES: dict[str, PreTrainedConfig] = {
    "Qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "Qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "Llama": LlamaConfig(**SHAPE, attention_bias=True),
}
LAYOUTS = (PackedLayout, VarlenLayout)
# What the presets leave out, and each ratio and estimator once more. `configs` may not combine all of it.
BESIDE_PRESETS: dict[str, dict[str, Any]] = {
    "sequence, everything on": {
        "ratio": "sequence",
        "dual_clip": 3.0,
        "kl": "k1",
        "kl_coefficient": 0.1,
        "kl_corrected": True,
        "entropy_coefficient": 0.01,
        "proximal": "recomputed",
        "importance_weight": "sequence",
        "mismatch_mask": "sequence",
    },
    "sequence_token": {
        "ratio": "sequence_token",
        "kl": "k2",
        "kl_coefficient": 0.1,
        "proximal": "recomputed",
        "importance_weight": "token",
        "mismatch_mask": "geometric",
    },
    "token mask": {"mismatch_mask": "token"},
}
OBJECTIVES = {name: {"preset": name} for name in PRESETS} | BESIDE_PRESETS


def policy_on_meta(name: str, layout: type[PackedLayout | VarlenLayout], checkpointing: bool) -> PolicyLogprobs:
    """A policy that is made on the CPU and moved, as DeepSpeed does. A tensor that is no buffer stays on the CPU."""
    model = AutoModelForCausalLM.from_config(POLICIES[name], dtype=torch.bfloat16, attn_implementation=PACKED)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return PolicyLogprobs(model, None, layout).to(META).train()


def packed(recomputed: bool) -> Microbatch:
    """Pairs of completions that share a prompt, and a conversation."""
    sequences = [
        TrainingSequence(one.token_ids, one.prompt_length, one.old_logprobs, one.advantage, 0.5, one.old_logprobs)
        if recomputed
        else one
        for one in random_sequences(4, group_size=2)
    ]
    # A conversation: the world gave two of its tokens, and each sampled token has an advantage and a weight.
    turns = TrainingSequence(
        tuple(range(3, 13)), 3, (-1.0,) * 5, (0.5,) * 5, (1.0,) * 5, (-1.1,) * 5 if recomputed else None, ((5, 7),)
    )
    return pack([*sequences, turns])


def step(policy: PolicyLogprobs, algorithm: AlgorithmConfig | None) -> OneDevice:
    """What `LearnerRank.step` computes of a microbatch; every parameter gets a gradient."""
    batch = packed(recomputed=algorithm is not None and algorithm.proximal == "recomputed")
    totals = Totals(torch.device("meta"))
    with OneDevice() as mode:
        on_meta = batch.to(META)
        if algorithm is None:
            terms = supervised_terms(on_meta, *policy(on_meta, 0.9, "value"))
        else:
            with torch.no_grad():
                (reference_T,) = policy(on_meta, 0.9)
            scored = policy(on_meta, 0.9, "gradient" if algorithm.entropy_coefficient else "value")
            terms = policy_terms(algorithm, on_meta, *scored, reference_T if algorithm.kl_in_loss else None)
        terms.loss_sum.backward()  # type: ignore[no-untyped-call]
        totals.add(terms)
    assert all(one.grad is not None and one.grad.is_meta for one in policy.parameters())
    return mode


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", list(POLICIES))
def test_every_objective_computes_on_one_device(
    name: str, layout: type[PackedLayout | VarlenLayout], checkpointing: bool
) -> None:
    policy = policy_on_meta(name, layout, checkpointing)
    for keys in (None, *OBJECTIVES.values()):
        policy.zero_grad()
        mode = step(policy, None if keys is None else AlgorithmConfig.model_validate(keys))
        # A mode that sees no operator would find nothing.
        assert mode.seen > 150, keys
        # Each copy to the CPU would make the CPU wait for the GPU. The sums go there once in a step, after this.
        assert not mode.read, (keys, mode.read)


def test_the_objectives_are_all_that_there_are() -> None:
    configs = [AlgorithmConfig.model_validate(keys) for keys in OBJECTIVES.values()]
    assert {config.ratio for config in configs} == set(get_args(Ratio))
    assert {config.kl for config in configs if config.kl_in_loss} == set(get_args(KL)) - {"none"}
    assert {config.importance_weight for config in configs} == {"none", "token", "sequence"}
    assert {config.mismatch_mask for config in configs} == {"none", "token", "sequence", "geometric"}


class MaskOnTheCpu(nn.Module):
    """A layer with a mask that is no buffer, so `to` leaves it on the CPU."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.mask_E = inner, torch.ones(SHAPE["hidden_size"], dtype=torch.bfloat16)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.inner(hidden)
        return output * self.mask_E


class GradientOnTheCpu(torch.autograd.Function):
    """Its backward pass multiplies by a factor on the CPU."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.ones(gradient.shape[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_planted_mask_on_the_cpu_is_found(layout: type[PackedLayout | VarlenLayout]) -> None:
    policy = policy_on_meta("Qwen3", layout, False)
    first = policy.model.base_model.layers[0]
    first.mlp = MaskOnTheCpu(first.mlp)
    with pytest.raises(MixedDevices, match=r"aten\.mul\.Tensor got meta \[.*\], cpu \[32\]"):
        step(policy, AlgorithmConfig())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_planted_factor_in_the_backward_pass_is_found(checkpointing: bool) -> None:
    policy = policy_on_meta("Qwen2", PackedLayout, checkpointing)
    first = policy.model.base_model.layers[0].mlp
    first.register_forward_hook(lambda _, __, output: GradientOnTheCpu.apply(output))
    with pytest.raises(MixedDevices, match=r"aten\.mul"):
        step(policy, AlgorithmConfig())


def test_planted_indices_and_waits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_on_meta("Qwen3", PackedLayout, False)
    with monkeypatch.context() as patch:
        # A microbatch whose sources stay on the CPU.
        patch.setattr(Microbatch, "to", lambda self, device: self)
        with pytest.raises(MixedDevices):
            step(policy, AlgorithmConfig())
    monkeypatch.setattr("grpo.algorithm.objective.losses.k3_kl", lambda one, other: one * float(other.sum()))
    with pytest.raises(MixedDevices, match="wait for a number"):
        step(policy, AlgorithmConfig())


def test_a_number_of_the_cpu_may_stand_beside_the_other_device() -> None:
    """As torch allows it: a tensor without dimensions is read as a number."""
    with OneDevice():
        scaled = torch.ones(3, device=META) * torch.tensor(2.0)
        assert scaled.is_meta and scaled.shape == (3,)
        with pytest.raises(MixedDevices):
            torch.ones(3, device=META) * torch.tensor([2.0])
