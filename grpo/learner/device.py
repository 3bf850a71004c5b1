"""Prepare a rank's process for its device, before the ranks connect."""

from __future__ import annotations

import deepspeed.ops
import torch

from grpo.config.cluster import Device


def prepare_device(device: Device, threads: int) -> None:
    """Set the number of threads (CPU), or choose the kernels of attention (GPU)."""
    # When the ranks connect, DeepSpeed runs a compiler to find out which of its operators it can build, and on a CPU it
    # then compiles an all-reduce. Only its inference calls this all-reduce. An empty table skips both.
    deepspeed.ops.__compatible_ops__ = {}
    if device == "cpu":
        torch.set_num_threads(threads)
        return
    # cuDNN's attention builds a plan for each new shape, which takes about a second. Batches of packed sequences have
    # new shapes in nearly every call.
    torch.backends.cuda.enable_cudnn_sdp(False)
