"""How much arithmetic a step is said to take."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig, MixtralConfig, Qwen3Config

from grpo.algorithm.packing import TrainingSequence, pack
from grpo.policy.flops import PolicyFlops, peak_flops

SHAPE = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 50,
}


def test_flops_of_a_batch_counted_by_hand() -> None:
    sizes = PolicyFlops.of_known(Qwen3Config(**SHAPE, head_dim=4))
    assert sizes is not None
    # A layer: queries and output 8 x 8, keys and values 8 x 4 each, three matrices of 8 x 16.
    weights = 3 * (2 * 64 + 2 * 32 + 3 * 128)
    # Two completions, of 2 and 3 tokens, share a prompt of 4: 4 + 1 + 2 tokens are computed and 5 predicted.
    packed = pack([TrainingSequence((1, 2, 3, 4, *rest), 4, (0.0,) * len(rest), 1.0) for rest in ((5, 6), (7, 8, 9))])
    pairs = 5 * 6 / 2 + 6 * 7 / 2
    assert sizes.training(packed) == pytest.approx(6 * weights * 7 + 6 * 8 * 50 * 5 + 12 * 3 * 8 * pairs)
    # Beside adapters the weights have no gradient of their own.
    frozen = sizes.training(packed, frozen=True)
    assert frozen == pytest.approx(4 * weights * 7 + 4 * 8 * 50 * 5 + 12 * 3 * 8 * pairs)


def test_what_has_experts_or_unknown_sizes_is_not_guessed_at() -> None:
    assert PolicyFlops.of_known(LlamaConfig(**SHAPE)) is not None
    assert PolicyFlops.of_known(MixtralConfig(**SHAPE, num_local_experts=4)) is None
    assert PolicyFlops.of_known(GPT2Config()) is None


def test_a_peak_is_known_by_the_name_of_the_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 9.89e14
    assert peak_flops("NVIDIA H100 PCIe") == 7.56e14
    assert peak_flops("a device of tomorrow") is None
