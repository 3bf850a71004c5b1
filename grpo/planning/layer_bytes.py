"""Measure the bytes that a layer of the policy keeps and needs in training, on torch's meta device.

The meta device has shapes and no numbers. So the real code of the layer runs, at its real size, in a fraction of a
second and without memory. Every storage that an operator makes is counted from its birth to its death.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from grpo.config import Dtype, LoraConfig
from grpo.planning.layer_sizes import LayerBytes
from grpo.policy.adapters import add_adapters
from grpo.policy.attention import PACKED
from grpo.policy.logprobs import DTYPES
from grpo.policy.recompute import recompute


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of a device's tensors that are alive, and their peak. Tensors in `known` do not count."""

    def __init__(self, known: Iterable[Tensor] = (), device: Literal["meta", "cpu"] = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, operator: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count the storages that it made."""
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self._device:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class _Attention(torch.autograd.Function):
    """What FlashAttention keeps (arXiv:2307.08691): queries, keys, values, outputs, and a log-sum-exp in float32."""

    @staticmethod
    def forward(ctx: Any, query_KHD: Tensor, key_KHD: Tensor, value_KHD: Tensor) -> Tensor:
        # In some policies, values have another size than queries.
        output_KHD = query_KHD.new_empty(*query_KHD.shape[:2], value_KHD.shape[2])
        log_sum_KH = query_KHD.new_empty(query_KHD.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(query_KHD, key_KHD, value_KHD, output_KHD, log_sum_KH)
        return output_KHD

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _LigerNorm(torch.autograd.Function):
    """What Liger's RMS norm keeps: its input, and a factor for each row. Its gradient replaces the output's."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _LigerGate(torch.autograd.Function):
    """What Liger's SwiGLU keeps: its two inputs. Their gradients replace them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(ctx.saved_tensors)


class _Layout:
    """Stands for `grpo.policy.attention`'s layouts: it repeats shared prompts, and its attention has no numbers."""

    def __init__(self, tokens: int, repeats: float) -> None:
        with torch.device("meta"):
            self._gather_K = torch.empty(round(tokens * repeats), dtype=torch.int64)
            self._kept_N = torch.empty(tokens, dtype=torch.int64)
        self.tensors = (self._gather_K, self._kept_N)
        self._in_order = repeats == 1.0

    def attend(self, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, _scaling: float | None) -> Tensor:
        tensors = [query_NHD, key_NHD, value_NHD]
        if not self._in_order:
            tensors = [tensor.index_select(0, self._gather_K) for tensor in tensors]
        output_KHD: Tensor = _Attention.apply(*tensors)  # type: ignore[no-untyped-call]
        return output_KHD if self._in_order else output_KHD.index_select(0, self._kept_N)


@dataclass(frozen=True, slots=True)
class LayerSetting:
    """What decides the bytes of a layer, beside the policy's architecture.

    Attributes:
        dtype: number format of weights and activations.
        kernels: kernels of norms and MLPs, as `grpo.policy.kernels` chooses them.
        repeats: tokens that attention computes for each token of the packed row: above 1 if sequences share prompts.
        lora: adapters, or None if all weights are trained.
    """

    dtype: Dtype
    kernels: Literal["eager", "liger"] = "eager"
    repeats: float = 1.0
    lora: LoraConfig | None = None


def measured_layer(policy: PreTrainedConfig, setting: LayerSetting, tokens: int) -> LayerBytes:
    """Measure a layer of the policy: forward and backward pass of models of one and two layers.

    Args:
        policy: architecture of the policy.
        setting: the rest of what decides the bytes.
        tokens: length of the packed row.

    Raises:
        ValueError: the policy's attention has a part that packed attention does not have.
    """
    (one, two), (one_again, two_again) = (
        [_passes(policy, setting, tokens, layers, again) for layers in (1, 2)] for again in (False, True)
    )
    kept = two.kept - one.kept
    return LayerBytes(
        kept=kept,
        input=two_again.kept - one_again.kept,
        outside=one.kept - kept,
        backward=two.peak - two.kept,
        again=two_again.peak - two_again.kept,
    )


@dataclass(frozen=True, slots=True)
class _Passes:
    """Bytes that are alive after the forward pass, and at the peak of the backward pass."""

    kept: int
    peak: int


def _passes(policy: PreTrainedConfig, setting: LayerSetting, tokens: int, layers: int, again: bool) -> _Passes:
    model, layout = _model(policy, setting, layers), _Layout(tokens, setting.repeats)
    recompute(model, 1.0 if again else 0.0)
    with torch.device("meta"):
        hidden = torch.empty(1, tokens, policy.hidden_size, dtype=DTYPES[setting.dtype], requires_grad=True)
        positions = torch.empty(1, tokens, dtype=torch.int64)
    live = LiveBytes([hidden, positions, *layout.tensors, *model.parameters(), *model.buffers()])
    with live:
        base: Any = model.base_model
        output = base(
            inputs_embeds=hidden, position_ids=positions, packed_layout=layout, use_cache=False
        ).last_hidden_state
        kept = live.peak = live.now
        torch.autograd.backward(output, torch.empty_like(output))
        return _Passes(kept, live.peak)


def _model(policy: PreTrainedConfig, setting: LayerSetting, layers: int) -> PreTrainedModel:
    shape = copy.deepcopy(policy)
    shape.num_hidden_layers = layers
    if getattr(shape, "layer_types", None):
        # A policy may have only one layer.
        shape.layer_types = (shape.layer_types * layers)[:layers]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=DTYPES[setting.dtype], attn_implementation=PACKED)
        if setting.lora:
            add_adapters(model, setting.lora, seed=0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # As `load_model` does.
    for parameter in model.parameters():
        if parameter.requires_grad:
            # DeepSpeed takes the gradient into its bucket as soon as it is there.
            parameter.register_post_accumulate_grad_hook(_drop)
    if setting.kernels == "liger":
        _like_liger(model)
    return model.train()  # type: ignore[no-any-return]


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _like_liger(model: nn.Module) -> None:
    """Let the norms and MLPs of this model keep what Liger's kernels keep."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _LigerNorm.apply
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")):
            module.forward = types.MethodType(_gated, module)


def _gated(module: Any, hidden: Tensor) -> Tensor:
    product = _LigerGate.apply(module.gate_proj(hidden), module.up_proj(hidden))  # type: ignore[no-untyped-call]
    return module.down_proj(product)  # type: ignore[no-any-return]
