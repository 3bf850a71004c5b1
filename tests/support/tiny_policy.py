"""A policy small enough to be made and run in a test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from grpo.algorithm.packing import TrainingSequence, pack
from grpo.config import NewPolicyConfig
from grpo.policy.attention import PACKED
from grpo.policy.new import make_policy
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict

if TYPE_CHECKING:
    from grpo.policy.logprobs import PolicyLogprobs

TINY = NewPolicyConfig(hidden_size=16, layers=2, heads=4, key_value_heads=2, intermediate_size=24, max_position=128)
# Smaller still, and it can write all that a keyboard can. vLLM has no smaller heads on a CPU, so `grpo check` takes it.
PRINTABLE = NewPolicyConfig(
    hidden_size=32,
    layers=1,
    heads=1,
    key_value_heads=1,
    intermediate_size=16,
    alphabet="".join(map(chr, range(32, 127))),
)

PROMPT = (5, 6, 7, 8)
TEMPERATURE = 0.7
# Completion tokens of three groups of four.
LENGTHS = ((1, 9, 4, 13), (2, 2, 7, 5), (6, 1, 3, 8))


def make_tiny_policy(folder: Path, new: NewPolicyConfig = TINY, seed: int = 0) -> Path:
    """Make one in `folder`, for a test that reads it from there."""
    make_policy(new, [], folder, seed)
    return folder


def load_tiny_model(folder: Path, attention: str = PACKED) -> PreTrainedModel:
    """Its model, in float64 so that equal means equal, with weights large enough to matter."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights are so small that attention barely looks at anything.
            parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
    return model


def tiny_logprobs(folder: Path) -> PolicyLogprobs:
    """A new tiny policy as the learner sees it."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from grpo.policy.logprobs import PolicyLogprobs

    return PolicyLogprobs(load_tiny_model(make_tiny_policy(folder)))


def sampled_groups(policy: PolicyLogprobs, noise: float, rewards: Sequence[Sequence[float | None]]) -> list[Group]:
    """Groups of `LENGTHS`, whose sampler's log-probabilities differ by `noise` from the policy's.

    Args:
        policy: which is to be trained.
        noise: standard deviation of the difference, nats.
        rewards: of each completion; None where its verifier took too long.

    Returns:
        Groups of random tokens; the longest completion is cut at the limit.
    """
    generator = torch.Generator().manual_seed(1)
    groups = []
    for number, (lengths, earned) in enumerate(zip(LENGTHS, rewards, strict=True)):
        rollouts = []
        for length, reward in zip(lengths, earned, strict=True):
            tokens = tuple(torch.randint(3, 20, (length,), generator=generator).tolist())
            (logprobs,) = policy(pack([TrainingSequence((*PROMPT, *tokens), 4, (0.0,) * length, 0.0)]), TEMPERATURE)
            moved = logprobs.detach() + noise * torch.randn(length, generator=generator)
            reason = "length" if length == max(LENGTHS[0]) else "stop"
            completion = Completion(tokens, tuple(moved.tolist()), "text", reason, (VersionSpan(0, length, 0),))
            said = verdict.timeout("slow") if reward is None else verdict.correct()
            rollouts.append(Rollout(completion, {"answer": said}, reward))
        groups.append(Group(Prompt(f"p{number}", "?", PROMPT, "0", {}), tuple(rollouts)))
    return groups


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, others: Tensor, longest: int, _: int, **named: Any
) -> Tensor:
    """What FlashAttention's kernel is said to do: causal attention of each sequence between two borders."""
    assert borders is others and named["window_size"] == (-1, 0) and borders.dtype == torch.int32
    lengths = borders.diff().tolist()
    assert max(lengths) == longest
    outputs = [
        scaled_dot_product_attention(
            *(one.transpose(0, 1) for one in parts),
            is_causal=True,
            scale=named["scale"],
            enable_gqa=named["enable_gqa"],
        ).transpose(0, 1)
        for parts in zip(*(one.split(lengths) for one in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs)


def qwen3_shape(hidden: int, layers: int, heads: int, intermediate: int, tied: bool) -> Qwen3Config:
    """The architecture of a published Qwen3 policy, for plans without its weights.

    Args:
        hidden: width of the hidden states.
        layers: number of layers.
        heads: number of attention heads.
        intermediate: width of the MLP.
        tied: whether input and output embeddings are a single tensor.
    """
    return Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=intermediate,
        tie_word_embeddings=tied,
        vocab_size=151_936,
        max_position_embeddings=32_768,
    )


def add_product_on_a_cpu(sum_VE: Tensor, gradient_VC: Tensor, hidden_CE: Tensor, beta: int) -> None:
    """Stand for `grpo.policy.head.add_product`, which only CUDA has: factors in bfloat16, and a sum in float32.

    With beta = 0 the sum is not read.
    """
    product_VE = gradient_VC.float() @ hidden_CE.float()
    sum_VE.copy_(product_VE + sum_VE if beta else product_VE)
