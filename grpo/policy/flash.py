"""Layouts with the kernels of FlashAttention 3 and 4, which packages beside torch bring.

FlashAttention 3 (Shah et al. 2024, arXiv:2407.08608) is for GPUs of compute capability 9, such as the H100. It must be
built from its sources, or installed from PyTorch's index. FlashAttention 4, of the package flash-attn-4, compiles its
kernels at their first call, for compute capabilities 9 and 10. `make install-gpu` installs it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from grpo.policy.attention import VarlenLayout


class _FlashLayout(VarlenLayout):
    """Sequences as in `VarlenLayout`, for a kernel that takes the arguments of `flash_attn_varlen_func`."""

    _module: str

    def _kernel(self, query_KHD: Tensor, key_KHD: Tensor, value_KHD: Tensor, scaling: float | None) -> Tensor:
        attended = _function(self._module)(
            query_KHD,
            key_KHD,
            value_KHD,
            cu_seqlens_q=self._borders,
            cu_seqlens_k=self._borders,
            max_seqlen_q=self._longest,
            max_seqlen_k=self._longest,
            softmax_scale=scaling,
            causal=True,
        )
        # Some releases return the log-sum-exp too.
        output_KHD: Tensor = attended[0] if isinstance(attended, tuple) else attended
        return output_KHD


class Flash3Layout(_FlashLayout):
    """Sequences as in `VarlenLayout`, for FlashAttention 3."""

    _module = "flash_attn_interface"


class Flash4Layout(_FlashLayout):
    """Sequences as in `VarlenLayout`, for FlashAttention 4."""

    _module = "flash_attn.cute"


@functools.cache
def _function(module: str) -> Callable[..., Any]:
    function: Callable[..., Any] = importlib.import_module(module).flash_attn_varlen_func
    return function


@dataclass(frozen=True, slots=True)
class FlashKernel:
    """A kernel of FlashAttention.

    Attributes:
        title: name in messages.
        layout: layout that calls the kernel.
        source: a file of the package that brings the kernel: the package, and the path in it.
        capabilities: major compute capabilities of the GPUs for which the kernel has a backward pass.
        remedy: how to install it.
    """

    title: str
    layout: type[VarlenLayout]
    source: str
    capabilities: tuple[int, ...]
    remedy: str

    def problem(self, capability: int) -> str:
        """Return why the kernel cannot run; empty if it can.

        Args:
            capability: major compute capability of the GPU.
        """
        if capability not in self.capabilities:
            needed = " or ".join(map(str, self.capabilities))
            return f"needs a GPU of compute capability {needed}, and this GPU has {capability}"
        if not _is_installed(self.source):
            return f"is not installed ({self.remedy})"
        return ""


# The keys are values of `learner.attention`. The first kernel is the older on its GPUs, and known to be fast.
FLASH_KERNELS = {
    "fa3": FlashKernel(
        "FlashAttention 3",
        Flash3Layout,
        "flash_attn_interface",
        (9,),
        "its module is flash_attn_interface; it is built from the sources of FlashAttention",
    ),
    "fa4": FlashKernel(
        "FlashAttention 4",
        Flash4Layout,
        "flash_attn.cute.interface",
        (9, 10),
        "`make install-gpu` installs the package flash-attn-4",
    ),
}


def _is_installed(module: str) -> bool:
    """Return whether a module's file is there. Nothing is imported, because that would compile or claim a device."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not inner:
        return spec is not None
    folders = spec.submodule_search_locations or ()
    return any(Path(folder, *inner).with_suffix(".py").is_file() for folder in folders)
