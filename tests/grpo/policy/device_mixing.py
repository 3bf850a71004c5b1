"""A dispatch mode that refuses operators which no CUDA device would accept. The meta device stands in for CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

META = torch.device("meta")
# These operators copy from one device to another; that is their purpose.
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class MixedDevices(AssertionError):
    """An operator got tensors of the CPU and of the other device."""


class OneDevice(TorchDispatchMode):
    """Inside the block, an operator that gets CPU tensors and meta tensors raises `MixedDevices`.

    torch allows CUDA tensors beside a CPU tensor without dimensions, because it reads such a tensor as a number. So
    this mode allows it too. torch also allows an index on the CPU, but it copies the index to the GPU at each call, so
    this mode refuses it.

    Meta tensors have no values. Where the real device would give a value, the mode gives the largest possible result:
    a boolean index selects all elements. A copy to the CPU gives zeros.

    Attributes:
        seen: number of operators that got meta tensors.
        read: names of the operators that copied values to the CPU.
    """

    def __init__(self) -> None:
        """Start without operators."""
        super().__init__()
        self.seen = 0
        self.read: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        on_meta = [tensor for tensor in tensors if tensor.is_meta]
        on_cpu = [tensor for tensor in tensors if not tensor.is_meta and tensor.dim() > 0]
        self.seen += bool(on_meta)
        if func not in _COPIES and on_meta and on_cpu:
            shapes = [f"{tensor.device.type} {list(tensor.shape)}" for tensor in tensors]
            raise MixedDevices(f"{func} got {', '.join(shapes)}")
        if func is torch.ops.aten._local_scalar_dense.default and on_meta:
            raise MixedDevices(f"{func} makes the CPU wait for a number of the GPU")
        if func is torch.ops.aten._to_copy.default and on_meta and kwargs.get("device", META).type == "cpu":
            self.read.append(str(func))
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is torch.ops.aten.index.Tensor and on_meta:
            args = (args[0], [_all_of(index) for index in args[1]])
        return func(*args, **kwargs)


def _all_of(index: Tensor | None) -> Tensor | None:
    """The index that a boolean mask would give if all its elements were true."""
    if index is None or index.dtype != torch.bool:
        return index
    assert index.dim() == 1, "only masks of one dimension are known"
    return torch.empty(len(index), dtype=torch.int64, device=META)
