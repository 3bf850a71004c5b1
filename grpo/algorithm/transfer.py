"""Copy tensors to a device without making the host wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to `device`.

    From ordinary memory, the host waits until a GPU has finished everything before the copy and the copy itself. From
    pinned memory, the host does not wait. torch keeps the pinned memory until the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
