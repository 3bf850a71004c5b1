"""Long sequences: the tokens of one microbatch shared by several ranks, after DeepSpeed-Ulysses.

Jacobs et al. 2023 (arXiv:2309.14509): each rank holds a part of the tokens and all that is computed token by token.
Only around attention an all-to-all turns parts of the tokens with all heads into all tokens with parts of the heads,
and back. So attention sees the whole packed row, and its layout stays that of `grpo.policy.attention`.
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
from grpo.policy.attention import packed_attention

ULYSSES = "packed_ulysses"


def check_heads(policy: PreTrainedConfig, size: int) -> None:
    """Refuse a policy whose heads cannot be shared out over `size` ranks.

    Raises:
        ValueError: query heads are no multiple of `size`, or key-value heads neither a multiple nor a divisor of it.
    """
    if size == 1:
        return
    heads: int = policy.num_attention_heads
    shared: int = getattr(policy, "num_key_value_heads", None) or heads

    def fits(ranks: int) -> bool:
        return heads % ranks == 0 and (shared % ranks == 0 or ranks % shared == 0)

    if not fits(size):
        choices = ", ".join(str(ranks) for ranks in range(1, heads + 1) if fits(ranks))
        raise ValueError(
            f"learner.sequence_parallel={size} cannot share out the policy's {heads} attention heads, {shared} of them "
            f"with keys and values; choose one of {choices}"
        )


@dataclass(frozen=True, slots=True)
class SequencePart:
    """What one rank computes of a microbatch; tensors as in `Microbatch`, positions counted from the part's first.

    Attributes:
        input_ids_N: int64, this rank's, some of them padding behind the microbatch's end.
        position_ids_N: int64.
        source_T: int64, of the predicted tokens whose output this rank has, possibly none.
        targets_T: int64.
        chosen_T: int64, which of the microbatch's predicted tokens these are.
        positions: of the whole microbatch, padded.
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    source_T: Tensor
    targets_T: Tensor
    chosen_T: Tensor
    positions: int


class SequenceGroup:
    """The ranks that share each microbatch's tokens: `size` neighbours, of which this is number `rank`."""

    def __init__(self, size: int) -> None:
        """Form the groups; every rank of the learner must come, and `torch.distributed` be up."""
        whole = dist.get_world_size()
        groups = [dist.new_group(range(first, first + size)) for first in range(0, whole, size)]
        self.process_group = groups[dist.get_rank() // size]
        self.rank, self.size = dist.get_rank() % size, size

    def part(self, batch: Microbatch) -> SequencePart:
        """This rank's tokens: equally many for each rank."""
        own = -(-len(batch.input_ids_N) // self.size)
        first = self.rank * own
        chosen_T = ((batch.source_T >= first) & (batch.source_T < first + own)).nonzero()[:, 0]
        return SequencePart(
            _cut(batch.input_ids_N, first, own),
            _cut(batch.position_ids_N, first, own),
            batch.source_T[chosen_T] - first,
            batch.targets_T[chosen_T],
            chosen_T,
            own * self.size,
        )

    def joined(self, own: Sequence[Tensor], chosen_T: Tensor, count: int) -> list[Tensor]:
        """Values of all predicted tokens, [T], from each rank's own, of which alone they have a gradient.

        Every rank then computes the same loss of the whole microbatch, ratios of whole sequences among it, and its
        backward pass brings what depends on its own tokens. The ranks' gradients add up to the whole, as those of
        different microbatches do.
        """
        whole = own[0].new_zeros(len(own), count)
        whole[:, chosen_T] = torch.stack([one.detach() for one in own])
        # Each element is one rank's number and zeros, so that the sum rounds nothing.
        dist.all_reduce(whole, group=self.process_group)
        return [row.index_copy(0, chosen_T, one) for row, one in zip(whole, own, strict=True)]


def _cut(values_N: Tensor, first: int, length: int) -> Tensor:
    part = values_N[first : first + length]
    return torch.cat([part, part.new_zeros(length - len(part))])


def register_attention(policy: PreTrainedConfig, group: SequenceGroup) -> None:
    """Make `ULYSSES` the attention of policies of this shape: `grpo.policy.attention` between two all-to-alls.

    Raises:
        ValueError: its heads cannot be shared out.
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
