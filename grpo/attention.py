"""Attention over packed sequences for `transformers` models, exact on every device.

Registered under the name `packed`: projections and MLPs see one long row without padding, and only here are the
sequences laid side by side, in batches of similar length, for PyTorch's causal attention. Nothing can leak from one
sequence into the next, as no query ever meets another sequence's key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from grpo.packing import Place

PACKED = "packed"

# A batch of sequences may hold at most this share of padding; more is split off into the next batch.
MAX_PADDING_SHARE = 0.05


def length_batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut sequences, shortest first, into runs [start, stop) that pad to at most `MAX_PADDING_SHARE`.

    Raises:
        ValueError: the lengths are not in ascending order.
    """
    if any(shorter > longer for shorter, longer in itertools.pairwise(lengths)):
        raise ValueError("lengths must ascend")
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
    """Where each sequence of a packed row lies, worked out once and used by every layer.

    A prompt that several sequences share is laid beside each of them, where its queries are the same and give the same;
    one of them is kept.
    """

    def __init__(self, places: Sequence[Place], device: torch.device, positions: int | None = None) -> None:
        """Lay out the sequences of one packed row.

        Args:
            places: of the sequences.
            device: of queries, keys and values.
            positions: of the row where something follows its last sequence, whose output nobody reads; None where not.
        """
        order = sorted(range(len(places)), key=lambda index: places[index].length)
        ascending = [places[index].length for index in order]
        self.batches: list[tuple[tuple[int, int], Tensor]] = []
        # Which element of all padded batches, one after another, holds a packed token's output.
        kept_N = np.zeros(positions or max(place.rest + place.rest_length for place in places), dtype=np.int64)
        first = 0
        for start, stop in length_batches(ascending):
            longest = ascending[stop - 1]
            # Row i, column j of the padded batch reads this packed token, and any token where it pads.
            gather_RL = np.zeros((stop - start, longest), dtype=np.int64)
            for row, index in enumerate(order[start:stop]):
                place = places[index]
                gather_RL[row, : place.prompt_length] = np.arange(place.prompt, place.prompt + place.prompt_length)
                gather_RL[row, place.prompt_length : place.length] = np.arange(
                    place.rest, place.rest + place.rest_length
                )
                kept_N[gather_RL[row, : place.length]] = first + np.arange(place.length)
                first += longest
            self.batches.append((gather_RL.shape, torch.from_numpy(gather_RL.reshape(-1)).to(device)))
        self.kept_N = torch.from_numpy(kept_N).to(device)


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
        query: [1, heads, N, head size].
        key: [1, key-value heads, N, head size].
        value: like `key`.
        attention_mask: must be None.
        scaling: of the scores; 1 / sqrt(head size) where None.
        dropout: must be 0 when trained with packing.
        packed_layout: where the sequences lie; passed through the model's keyword arguments.

    Returns:
        [1, N, heads, head size], and None for the weights.
    """
    if packed_layout is None:
        raise ValueError("packed attention needs packed_layout=PackedLayout(places, device) in the model's call")
    if getattr(module, "sliding_window", None):
        raise ValueError("packed attention has no sliding window; train a policy whose config has none")
    grouped = query.shape[1] != key.shape[1]
    query_NHD, key_NHD, value_NHD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    outputs: list[Tensor] = []
    for (rows, longest), gather in packed_layout.batches:
        query_RHLD, key_RHLD, value_RHLD = (
            tensor.index_select(0, gather).view(rows, longest, *tensor.shape[1:]).transpose(1, 2)
            for tensor in (query_NHD, key_NHD, value_NHD)
        )
        # Padding lies behind each sequence's end, so causality alone keeps real tokens from seeing it.
        output_RHLD = scaled_dot_product_attention(
            query_RHLD, key_RHLD, value_RHLD, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        outputs.append(output_RHLD.transpose(1, 2).reshape(rows * longest, query.shape[1], value.shape[3]))
    return torch.cat(outputs).index_select(0, packed_layout.kept_N).unsqueeze(0), None


AttentionInterface.register(PACKED, packed_attention)
