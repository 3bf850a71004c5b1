"""Attention over packed sequences for `transformers` models, exact on every device.

Registered under the name `packed`: projections and MLPs see one long row without padding, and only here are the
sequences laid side by side, in batches of similar length, for PyTorch's causal attention. Nothing can leak from one
sequence into the next, as no query ever meets another sequence's key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "packed"

# A batch of sequences may hold at most this share of padding; more is split off into the next batch.
MAX_PADDING_SHARE = 0.25


def length_batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut sequences, shortest first, into runs [start, stop) that pad to at most `MAX_PADDING_SHARE`.

    Raises:
        ValueError: the lengths are not in ascending order.
    """
    if any(shorter > longer for shorter, longer in itertools.pairwise(lengths)):
        raise ValueError("lengths must ascend; pack() lays the shortest sequence first")
    batches: list[tuple[int, int]] = []
    start, total = 0, 0
    for stop, length in enumerate(lengths):
        padded = length * (stop + 1 - start)
        if stop > start and padded - (total + length) > MAX_PADDING_SHARE * padded:
            batches.append((start, stop))
            start, total = stop, 0
        total += length
    batches.append((start, len(lengths)))
    return batches


class PackedLayout:
    """Where each sequence of a packed row lies, worked out once and used by every layer."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """Lay out sequences of these lengths (ascending) that follow each other in one row."""
        self.batches: list[tuple[slice, tuple[int, int], Tensor | None, Tensor | None]] = []
        token = 0
        for start, stop in length_batches(lengths):
            rows, longest = stop - start, lengths[stop - 1]
            total = sum(lengths[start:stop])
            gather = scatter = None
            if total < rows * longest:
                # Row i, column j of the padded batch reads packed token first_i + j, and any token where it pads.
                counts_R = torch.tensor(lengths[start:stop])
                first_R = torch.cumsum(counts_R, 0) - counts_R
                column_L = torch.arange(longest)
                inside_RL = column_L[None, :] < counts_R[:, None]
                gather = torch.where(inside_RL, first_R[:, None] + column_L, 0).flatten().to(device)
                scatter = inside_RL.flatten().nonzero().flatten().to(device)
            self.batches.append((slice(token, token + total), (rows, longest), gather, scatter))
            token += total


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: PackedLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence of a packed row, as `transformers` calls it.

    Args:
        module: the attention layer.
        query: [1, heads, T, head size].
        key: [1, key-value heads, T, head size].
        value: like `key`.
        attention_mask: must be None.
        scaling: of the scores; 1 / sqrt(head size) where None.
        dropout: must be 0 when trained with packing.
        packed_layout: where the sequences lie; passed through the model's keyword arguments.

    Returns:
        [1, T, heads, head size], and None for the weights.
    """
    if packed_layout is None:
        raise ValueError("packed attention needs packed_layout=PackedLayout(lengths, device) in the model's call")
    if getattr(module, "sliding_window", None):
        raise ValueError("packed attention has no sliding window; train a policy whose config has none")
    grouped = query.shape[1] != key.shape[1]
    outputs: list[Tensor] = []
    for tokens, (rows, longest), gather, scatter in packed_layout.batches:
        query_RHLD, key_RHLD, value_RHLD = (
            _side_by_side(tensor[0, :, tokens], gather, rows, longest) for tensor in (query, key, value)
        )
        # Padding lies behind each sequence's end, so causality alone keeps real tokens from seeing it.
        output_RHLD = scaled_dot_product_attention(
            query_RHLD, key_RHLD, value_RHLD, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        output = output_RHLD.transpose(1, 2).reshape(rows * longest, query.shape[1], value.shape[3])
        outputs.append(output if scatter is None else output.index_select(0, scatter))
    return torch.cat(outputs).unsqueeze(0), None


def _side_by_side(packed_HTD: Tensor, gather: Tensor | None, rows: int, longest: int) -> Tensor:
    """[heads, tokens, head size] of a run of sequences as [rows, heads, longest, head size]."""
    heads, _, size = packed_HTD.shape
    packed_THD = packed_HTD.transpose(0, 1)
    if gather is not None:
        packed_THD = packed_THD.index_select(0, gather)
    return packed_THD.reshape(rows, longest, heads, size).transpose(1, 2)


AttentionInterface.register(PACKED, packed_attention)
