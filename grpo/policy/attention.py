"""Attention over packed sequences for `transformers` models, exact on every device.

This attention is registered under the name `packed`. Projections and MLPs compute a single long row without padding.
Only attention separates the sequences. A query is never compared with the key of another sequence, so sequences do not
affect each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from grpo.algorithm.packing import Place, length_batches
from grpo.algorithm.transfer import on_device

PACKED = "packed"


class Layout(Protocol):
    """The positions of the sequences in a packed row, computed once for all layers."""

    def attend(self, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scaling: float | None) -> Tensor:
        """Compute causal attention inside each sequence. Return [N, query heads, head size]."""


def _positions(place: Place) -> np.ndarray:
    """Return the positions of a sequence's tokens in the row. The prompt's positions come first."""
    prompt = np.arange(place.prompt, place.prompt + place.prompt_length)
    return np.concatenate([prompt, np.arange(place.rest, place.rest + place.rest_length)])


def _row_length(places: Sequence[Place]) -> int:
    return max(place.rest + place.rest_length for place in places)


class PackedLayout:
    """Sequences side by side in batches of similar length, for PyTorch's attention on any device.

    A prompt that several sequences share is repeated for each of these sequences. The repeated queries have the same
    outputs, and the layout keeps only one copy of the outputs.
    """

    def __init__(self, places: Sequence[Place], device: torch.device, positions: int | None = None) -> None:
        """Lay out the sequences of one packed row.

        Args:
            places: places of the sequences.
            device: device of queries, keys and values.
            positions: length of the row, if padding follows the last sequence; None if there is no padding.
        """
        order = sorted(range(len(places)), key=lambda index: places[index].length)
        ascending = [places[index].length for index in order]
        # Rows and longest sequence of each padded batch.
        self._batches: list[tuple[int, int]] = []
        gathers: list[np.ndarray] = []
        # For each packed token, the index of its output in the concatenated padded batches.
        kept_N = np.zeros(positions or _row_length(places), dtype=np.int64)
        first = 0
        for start, stop in length_batches(ascending):
            longest = ascending[stop - 1]
            # For row i and column j of the padded batch: the index of the packed token. Padding may have any index.
            gather_RL = np.zeros((stop - start, longest), dtype=np.int64)
            for row, index in enumerate(order[start:stop]):
                length = places[index].length
                gather_RL[row, :length] = _positions(places[index])
                kept_N[gather_RL[row, :length]] = first + np.arange(length)
                first += longest
            self._batches.append((stop - start, longest))
            gathers.append(gather_RL.reshape(-1))
        # For each element of the padded batches, one after another: the index of the packed token.
        self._gather_B = on_device(torch.from_numpy(np.concatenate(gathers)), device)
        self._kept_N = on_device(torch.from_numpy(kept_N), device)

    def attend(self, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scaling: float | None) -> Tensor:
        """Compute causal attention inside each sequence. Return [N, query heads, head size]."""
        heads = query_NHD.shape[1]
        outputs: list[Tensor] = []
        # One gather for all batches: the gradient of each gather is a sum into a new tensor as large as the whole row.
        sizes = [rows * longest for rows, longest in self._batches]
        parts = (
            torch.split(tensor.index_select(0, self._gather_B), sizes) for tensor in (query_NHD, key_NHD, value_NHD)
        )
        for (rows, longest), *tensors in zip(self._batches, *parts, strict=True):
            query_RHLD, key_RHLD, value_RHLD = (
                tensor.view(rows, longest, *tensor.shape[1:]).transpose(1, 2) for tensor in tensors
            )
            # Padding follows the end of each sequence, so the causal mask alone hides the padding from real tokens.
            output_RHLD = scaled_dot_product_attention(
                query_RHLD, key_RHLD, value_RHLD, is_causal=True, scale=scaling, enable_gqa=heads != key_NHD.shape[1]
            )
            outputs.append(output_RHLD.transpose(1, 2).reshape(rows * longest, heads, value_NHD.shape[2]))
        return torch.cat(outputs).index_select(0, self._kept_N)


class VarlenLayout:
    """Sequences one after another without padding, for FlashAttention's kernel for variable lengths, on a GPU.

    The kernel is torch's version of FlashAttention-2, Dao 2023 (arXiv:2307.08691). `grpo.policy.flash` has layouts with
    newer kernels. A shared prompt is repeated as in `PackedLayout`.
    """

    def __init__(self, places: Sequence[Place], device: torch.device, positions: int | None = None) -> None:
        """Lay out the sequences of one packed row; the arguments are the same as in `PackedLayout`."""
        gather_K = np.concatenate([_positions(place) for place in places])
        kept_N = np.zeros(positions or _row_length(places), dtype=np.int64)
        kept_N[gather_K] = np.arange(len(gather_K))
        lengths = [place.length for place in places]
        self._longest = max(lengths)
        # If no prompt is shared and nothing follows the last sequence, the row already has the kernel's order. On a GPU
        # the gradient of a gather is a slow sum by atomic additions.
        self._in_order = len(gather_K) == len(kept_N) and bool((np.diff(gather_K) == 1).all())
        borders = np.cumsum([0, *lengths], dtype=np.int32)
        self._gather_K, self._kept_N, self._borders = (
            on_device(torch.from_numpy(values), device) for values in (gather_K, kept_N, borders)
        )

    def attend(self, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scaling: float | None) -> Tensor:
        """Compute causal attention inside each sequence. Return [N, query heads, head size]."""
        query_KHD, key_KHD, value_KHD = (
            tensor if self._in_order else tensor.index_select(0, self._gather_K)
            for tensor in (query_NHD, key_NHD, value_NHD)
        )
        output_KHD = self._kernel(query_KHD, key_KHD, value_KHD, scaling)
        return output_KHD if self._in_order else output_KHD.index_select(0, self._kept_N)

    def _kernel(self, query_KHD: Tensor, key_KHD: Tensor, value_KHD: Tensor, scaling: float | None) -> Tensor:
        borders, longest = self._borders, self._longest
        # Causal attention: a query attends to all earlier keys and to no later keys.
        window = (-1, 0)
        output_KHD = varlen_attn(
            query_KHD, key_KHD, value_KHD, borders, borders, longest, longest,
            scale=scaling, window_size=window, enable_gqa=query_KHD.shape[1] != key_KHD.shape[1],
        )  # fmt: skip
        assert isinstance(output_KHD, Tensor)
        return output_KHD


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention inside each sequence of a packed row, with the interface of `transformers`.

    Args:
        module: attention layer.
        query: tensor [1, heads, N, head size].
        key: tensor [1, key-value heads, N, head size].
        value: tensor with the shape of `key`.
        attention_mask: must be None.
        scaling: factor of the scores; None for 1 / sqrt(head size).
        dropout: must be 0.
        packed_layout: positions of the sequences. The model passes this keyword argument on to its attention layers.

    Returns:
        The outputs [1, N, heads, head size], and None in place of the attention weights.
    """
    if packed_layout is None:
        raise ValueError("packed attention needs packed_layout=PackedLayout(places, device) in the model's call")
    if getattr(module, "sliding_window", None):
        raise ValueError("packed attention has no sliding window; train a policy without sliding_window in its config")
    if dropout:
        raise ValueError(
            f"packed attention has no dropout, but the policy has {dropout}; set attention_dropout to 0 in its "
            "config.json"
        )
    # The gradient of `squeeze` is a view. The gradient of an index is a new tensor of zeros with a copy in it.
    query_NHD, key_NHD, value_NHD = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return packed_layout.attend(query_NHD, key_NHD, value_NHD, scaling).unsqueeze(0), None


AttentionInterface.register(PACKED, packed_attention)
