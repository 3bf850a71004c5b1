"""Choose the layers whose activations are computed again in the backward pass (gradient checkpointing)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recomputed_layers(layers: int, share: float) -> tuple[bool, ...]:
    """Return for each layer whether it is recomputed. The recomputed layers are spread evenly.

    Args:
        layers: number of layers.
        share: share of the layers, 0 to 1. Their number is rounded; a share above 0 gives at least one layer.
    """
    count = max(1, round(share * layers)) if share else 0
    return tuple((layer + 1) * count // layers > layer * count // layers for layer in range(layers))


def recompute(model: PreTrainedModel, share: float) -> None:
    """Keep only the inputs of a share of the layers, and compute the rest of these layers in the backward pass.

    The gradients stay the same to the bit. Chen et al. 2016 (arXiv:1604.06174).

    Raises:
        ValueError: the share is neither 0 nor 1, and the policy's code has no layers that can be chosen.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not share:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if share == 1:
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"learner.gradient_checkpointing={share:g} chooses among layers, but the code of {type(model).__name__} "
            "recomputes all layers or none; use 0 or 1"
        )
    for layer, chosen in zip(layers, recomputed_layers(len(layers), share), strict=True):
        layer.gradient_checkpointing = chosen
