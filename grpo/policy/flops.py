"""Count the floating-point operations (FLOPs) of a step, for the model FLOPs utilisation (MFU); bound its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo.algorithm.packing import Microbatch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Size of the float32 logits in memory at a time, in bytes. With a vocabulary of 150,000, these are the logits of 440
# tokens. The backward pass needs three times this size.
LOGIT_BYTES = 1 << 28
# The same with the fused output head of a GPU, in the weights' number format, with no further copy. In bfloat16 with a
# vocabulary of 150,000, these are the logits of 1,770 tokens.
FUSED_LOGIT_BYTES = 1 << 29
# Peak FLOP/s of a device for dense matrices in bfloat16, from the makers' data sheets. The key is a part of the
# device's name.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "RTX 4090": 1.65e14,
}


def peak_flops(device_name: str) -> float | None:
    """Return a device's peak FLOP/s in bfloat16 according to the device's maker; None if the name is unknown."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


@dataclass(frozen=True, slots=True)
class PolicyFlops:
    """The sizes of a policy that determine the FLOPs of a token.

    Attributes:
        layer_weights: number of weights in the layers' matrices. The model multiplies every computed token by these
            weights.
        head_weights: number of weights of the output head. The model multiplies only predicted tokens by these
            weights.
        attention_width: number of query heads times head size, summed over all layers.
    """

    layer_weights: int
    head_weights: int
    attention_width: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> PolicyFlops:
        """Compute the sizes of a dense decoder with gated MLPs, for example Llama, Qwen, Mistral or Gemma."""
        hidden, layers = config.hidden_size, config.num_hidden_layers
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or hidden // heads
        key_value_heads = getattr(config, "num_key_value_heads", None) or heads
        attention = hidden * size * (2 * heads + 2 * key_value_heads)
        mlp = 3 * hidden * config.intermediate_size
        return cls(layers * (attention + mlp), hidden * config.vocab_size, layers * heads * size)

    @classmethod
    def of_known(cls, config: PreTrainedConfig) -> PolicyFlops | None:
        """Do the same as `of`, but return None for a mixture of experts or a config with other names of sizes."""
        experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        if experts or not all(hasattr(config, name) for name in sizes):
            return None
        return cls.of(config)

    def training(self, microbatch: Microbatch, *, frozen: bool = False) -> float:
        """Return the FLOPs of the forward and backward pass. A multiplication and an addition count as two FLOPs.

        For each weight and token, the forward pass takes 2 FLOPs and the backward pass 4 (Kaplan et al. 2020,
        arXiv:2001.08361, section 2.1). For each pair of a token and a token that it attends to, both passes together
        take 12 FLOPs times the attention's width. In a sequence of L tokens, these pairs are the causal half of L^2;
        PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) counts both halves. The tokens of a shared prompt
        count once, because they are computed once. Recomputation by gradient checkpointing does not count.

        Args:
            microbatch: microbatch to compute.
            frozen: True if the weights get no gradient. Each weight and token then take 4 FLOPs instead of 6. Adapters
                are not counted.
        """
        pairs = sum(place.length * (place.length + 1) / 2 for place in microbatch.places)
        each = 4.0 if frozen else 6.0
        return (
            each * self.layer_weights * len(microbatch.input_ids_N)
            + each * self.head_weights * len(microbatch.targets_T)
            + 12.0 * self.attention_width * pairs
        )
