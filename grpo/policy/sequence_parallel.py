"""Long sequences: several ranks share the tokens of a microbatch, as in DeepSpeed-Ulysses.

Jacobs et al. 2023 (arXiv:2309.14509): each rank holds some of the tokens. In layers that treat each token separately,
a rank computes only its own tokens. Before attention, the ranks run an all-to-all exchange. Before this exchange, a
rank holds some tokens with all their heads; after it, the rank holds all tokens with some of the heads. After
attention, another exchange reverses the first. Therefore attention gets the whole packed row, and
`grpo.policy.attention` needs no change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from grpo.algorithm.packing import Microbatch
from grpo.algorithm.transfer import on_device
from grpo.policy.attention import packed_attention
from grpo.policy.stored import check_heads

ULYSSES = "packed_ulysses"


@dataclass(frozen=True, slots=True)
class SequencePart:
    """The part of a microbatch that a rank computes. The tensors have the same meaning as in `Microbatch`.

    Attributes:
        input_ids_N: int64, tokens of this rank. Padding follows the end of the microbatch.
        position_ids_N: int64, positions of the tokens in their sequences.
        source_T: int64, positions of this rank whose output predicts a token, counted from the start of the part;
            possibly empty.
        targets_T: int64, predicted tokens.
        chosen_T: int64, indices of `targets_T` among all predicted tokens of the microbatch.
        positions: number of positions of the whole microbatch, with padding.
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    source_T: Tensor
    targets_T: Tensor
    chosen_T: Tensor
    positions: int


class SequenceGroup:
    """The `size` neighbouring ranks that share the tokens of each microbatch. `rank` is the number of this rank."""

    def __init__(self, size: int) -> None:
        """Form the groups. Every rank of the learner must call this, after `torch.distributed` is initialised."""
        whole = dist.get_world_size()
        groups = [dist.new_group(range(first, first + size)) for first in range(0, whole, size)]
        self.process_group = groups[dist.get_rank() // size]
        self.rank, self.size = dist.get_rank() % size, size

    def part(self, batch: Microbatch) -> SequencePart:
        """Return the tokens of this rank. Each rank gets the same number of tokens."""
        length = -(-len(batch.input_ids_N) // self.size)
        first = self.rank * length
        # To find the indices on a GPU, the host would have to wait for it.
        source_T = batch.source_T if batch.host_source_T is None else batch.host_source_T
        here_T = ((source_T >= first) & (source_T < first + length)).nonzero()[:, 0]
        chosen_T = on_device(here_T, batch.source_T.device)
        return SequencePart(
            _cut(batch.input_ids_N, first, length),
            _cut(batch.position_ids_N, first, length),
            batch.source_T[chosen_T] - first,
            batch.targets_T[chosen_T],
            chosen_T,
            length * self.size,
        )

    def joined(self, values: Sequence[Tensor], chosen_T: Tensor, count: int) -> list[Tensor]:
        """Combine the ranks' values into values of all predicted tokens, [T]. Only this rank's values have a gradient.

        Every rank then computes the same loss of the whole microbatch, including ratios of whole sequences. The
        backward pass of a rank gives the gradient for the tokens of this rank. The sum of the ranks' gradients is the
        whole gradient, just as when each rank has its own microbatch.
        """
        whole = values[0].new_zeros(len(values), count)
        whole[:, chosen_T] = torch.stack([part.detach() for part in values])
        # For each element, a single rank has the number and the other ranks have zero, so the sum is exact.
        dist.all_reduce(whole, group=self.process_group)
        return [row.index_copy(0, chosen_T, part) for row, part in zip(whole, values, strict=True)]


def _cut(values_N: Tensor, first: int, length: int) -> Tensor:
    part = values_N[first : first + length]
    return torch.cat([part, part.new_zeros(length - len(part))])


def register_attention(policy: PreTrainedConfig, group: SequenceGroup) -> None:
    """Register the attention `ULYSSES`, for policies with the numbers and sizes of heads in `policy`.

    This attention runs `packed_attention` between two all-to-all exchanges.

    Raises:
        ValueError: the heads cannot be shared out.
    """
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    check_heads(policy, group.size)
    heads = policy.num_attention_heads
    exchange = UlyssesSPAttentionHF(
        packed_attention,
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=getattr(policy, "head_dim", None) or policy.hidden_size // heads,
        kv_head_count=getattr(policy, "num_key_value_heads", None) or heads,
        num_hidden_layers=policy.num_hidden_layers,
        process_group=group.process_group,
        seq_length_is_variable=True,
    )

    def attention(module: nn.Module, *tensors: Tensor | None, **named: Any) -> tuple[Tensor, None]:
        output_NHD, _ = exchange(module, *tensors, **named)
        return output_NHD, None

    AttentionInterface.register(ULYSSES, attention)
