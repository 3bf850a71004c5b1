"""The bytes of a layer in training; for common policies on a CPU without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from grpo.policy.plain import PlainConfig


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes for a microbatch.

    Attributes:
        kept: bytes that a layer keeps from its forward pass for its backward pass.
        input: bytes that it keeps if it is computed again in the backward pass (gradient checkpointing).
        outside: bytes that is kept outside the layers: final norm, rotary embeddings.
        backward: further bytes at the peak of a layer's backward pass, beside everything that is kept.
        again: the same for a layer that is computed again.
    """

    kept: float
    input: float
    outside: float
    backward: float
    again: float


def plain_layer(policy: PlainConfig, size: int, tokens: float) -> LayerBytes:
    """Compute what `grpo.planning.layer_bytes` measures, for a Qwen2 or Qwen3 policy with eager kernels.

    `grpo check` of a small policy on a CPU needs no torch, and importing torch takes seconds. A test compares this
    function with the measured layer.

    Args:
        policy: architecture of the policy.
        size: bytes of a weight: 2 or 4.
        tokens: tokens of the microbatch.
    """
    hidden, inner = policy.hidden_size, policy.intermediate_size
    head = policy.head_dim or hidden // policy.num_attention_heads
    queries, keys = policy.num_attention_heads * head, policy.num_key_value_heads * head
    # A norm computes in float32. It keeps its input in float32, a factor, the normed values, and its output.
    norm = 4 + 2 * size
    kept = 2 * (norm * hidden + 4)
    # Queries, keys, values and outputs of attention, and a log-sum-exp for each query head.
    kept += size * (2 * queries + 2 * keys) + 4 * policy.num_attention_heads
    if policy.model_type == "qwen3":
        # The output of these two norms is not kept: rotary embeddings change it.
        kept += (4 + size) * (queries + keys) + 4 * (policy.num_attention_heads + policy.num_key_value_heads)
    # Gate, its activation, up, and their product.
    kept += 4 * size * inner
    # The backward pass of a norm in float32, or of the MLP's activation, as measured.
    backward = tokens * max(20 * hidden, 2 * size * inner)
    return LayerBytes(
        kept=tokens * kept,
        input=tokens * size * hidden,
        outside=tokens * (8 * hidden + 4 + 2 * size * head),
        backward=backward,
        again=tokens * kept + backward / (2 if size == 2 else 1),
    )
