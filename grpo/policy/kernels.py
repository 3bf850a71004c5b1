"""Replace the norms, rotary embeddings and MLPs of a policy by Liger's Triton kernels, on a GPU.

In eager PyTorch each of these is several operators, and each operator reads and writes a whole layer's activations.
Liger (Hsu et al. 2024, arXiv:2410.10989) computes each of them in one pass. The output head stays `LogprobHead`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Literal

from grpo.config.cluster import Device
from grpo.config.learner import Kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families (`model_type`) for which Liger's function `apply_liger_kernel_to_<family>` is used.
FAMILIES = ("llama", "qwen2", "qwen3")
# Liger's MLP computes only this activation, under two names, and does not look at the policy's config.
_SILU = ("silu", "swish")


def chosen_kernels(kernels: Kernels, device: Device, family: str) -> Literal["eager", "liger"]:
    """Return the kernels that `learner.kernels` selects.

    Args:
        kernels: the setting. `auto` is `liger` where it runs, otherwise `eager`.
        device: device of the learner.
        family: `model_type` of the policy's config.

    Raises:
        ValueError: the setting is `liger`, which does not run here or does not know the policy's family.
    """
    problem = None
    if device == "cpu":
        problem = "needs a GPU and the learner is on a CPU"
    elif family not in FAMILIES:
        problem = f"knows the families {', '.join(FAMILIES)}, and the policy's family is {family}"
    elif importlib.util.find_spec("liger_kernel") is None:
        problem = "needs the package liger-kernel, which is not installed (`make install-gpu` installs it)"
    if kernels == "liger" and problem:
        raise ValueError(f"learner.kernels=liger {problem}; use auto or eager")
    return "eager" if kernels == "eager" or problem else "liger"


def patch_kernels(model: PreTrainedModel) -> None:
    """Replace the kernels of a policy of one of the `FAMILIES`.

    Liger changes the norms and MLPs of this model. In the module of the family it changes the rotary embedding, and the
    classes of norms and MLPs of later models. So all policies of this process must use Liger.
    """
    family = model.config.model_type
    apply = getattr(importlib.import_module("liger_kernel.transformers"), f"apply_liger_kernel_to_{family}")
    # Without the last two, Liger would replace the model's forward pass or torch's cross entropy.
    apply(
        rope=True,
        rms_norm=True,
        swiglu=model.config.hidden_act in _SILU,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=model,
    )
