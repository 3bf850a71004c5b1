"""Compute the engine's norms on a CPU with a kernel of vLLM that vLLM itself does not use on a CPU.

Without the kernel, a norm takes about seven operators of torch. For a small policy, calling the operators takes more
time than their computation. With the kernel, sampling takes 7 % less time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform


class KernelRMSNorm(RMSNorm):
    """`RMSNorm` (arXiv:1910.07467) that uses one operator if the result is the same: in float32, over the whole width.

    In bfloat16 the result differs. The kernel rounds once, but the learner rounds twice: before and after it multiplies
    by the weight.
    """

    def forward_native(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the norm of `x`. If there is a `residual`, return the norm of `x + residual`, and that sum.

        With a `residual`, both inputs may be overwritten.
        """
        plain = self.has_weight and self.variance_size_override is None
        if not plain or x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward_native(x, residual)
        # The kernel requires contiguous rows.
        if residual is None:
            normed = torch.empty(x.shape, dtype=x.dtype)
            torch.ops._C.rms_norm.default(normed, x.contiguous(), self.weight, self.variance_epsilon)
            return normed
        if not (x.is_contiguous() and residual.is_contiguous()):
            return super().forward_native(x, residual)
        torch.ops._C.fused_add_rms_norm.default(x, residual, self.weight, self.variance_epsilon)
        return x, residual


def register() -> None:
    """Make vLLM use the kernel for its models, in this process, on a CPU. Safe to call twice."""
    # Another plug-in may already have registered a norm. A build of vLLM for another processor may lack the kernel.
    if (
        current_platform.is_cpu()
        and RMSNorm.__name__ not in op_registry_oot
        and hasattr(torch.ops._C, "fused_add_rms_norm")
    ):
        RMSNorm.register_oot(KernelRMSNorm)
