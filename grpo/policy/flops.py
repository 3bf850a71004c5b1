"""How much arithmetic a step takes, and how much of the device that uses: model FLOPs utilisation (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from grpo.algorithm.packing import Microbatch

# Dense matrix FLOP/s in bfloat16 without sparsity, from the makers' data sheets, by a part of the device's name.
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
    """FLOP/s in bfloat16 of a device, as its maker states them; None where the name is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


@dataclass(frozen=True, slots=True)
class PolicyFlops:
    """What of a policy's shape decides how much arithmetic a token takes.

    Attributes:
        layer_weights: weights of the matrices that every computed token meets.
        head_weights: weights of the output head, which only predicted tokens meet.
        attention_width: over all layers, query heads times their size.
    """

    layer_weights: int
    head_weights: int
    attention_width: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> PolicyFlops:
        """Of a dense decoder with gated MLPs (Llama, Qwen, Mistral, Gemma and their like)."""
        hidden, layers = config.hidden_size, config.num_hidden_layers
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or hidden // heads
        key_value_heads = getattr(config, "num_key_value_heads", None) or heads
        attention = hidden * size * (2 * heads + 2 * key_value_heads)
        mlp = 3 * hidden * config.intermediate_size
        return cls(layers * (attention + mlp), hidden * config.vocab_size, layers * heads * size)

    @classmethod
    def of_known(cls, config: PreTrainedConfig) -> PolicyFlops | None:
        """As `of`; None for a mixture of experts, and where the config has other names for its sizes."""
        experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        if experts or not all(hasattr(config, name) for name in sizes):
            return None
        return cls.of(config)

    def training(self, microbatch: Microbatch, *, frozen: bool = False) -> float:
        """FLOPs of forward and backward, two for a multiply and an add.

        6 for each weight that a token meets: 2 forward, 4 backward (Kaplan et al. 2020, arXiv:2001.08361, section
        2.1), and 12 times the attention's width for each pair of a token with one that it sees, the causal half of L^2
        (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B, which counts both halves). A prompt that a group
        shares counts once, as it is computed once; recomputation by gradient checkpointing does not count.

        Args:
            microbatch: what is computed.
            frozen: the weights get no gradient of their own, which leaves 4 of the 6; adapters are not counted.
        """
        pairs = sum(place.length * (place.length + 1) / 2 for place in microbatch.places)
        each = 4.0 if frozen else 6.0
        return (
            each * self.layer_weights * len(microbatch.input_ids_N)
            + each * self.head_weights * len(microbatch.targets_T)
            + 12.0 * self.attention_width * pairs
        )
