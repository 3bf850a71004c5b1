"""DeepSpeed's section `zero_optimization`, as the learner's settings ask for it."""

from __future__ import annotations

from typing import Any

from grpo.config import LearnerConfig
from grpo.setups import Device


def zero_settings(learner: LearnerConfig, device: Device) -> dict[str, Any]:
    """ZeRO's stage, what it keeps in the host's memory, and whether it communicates during the backward pass.

    Offloaded parameters imply offloaded optimizer states (ZeRO-Infinity, Rajbhandari et al. 2021, arXiv:2104.07857).
    """
    settings: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.overlap_comm is not None:
        settings["overlap_comm"] = learner.overlap_comm
    # Only pinned memory is copied to and from a GPU while it computes.
    host = {"device": "cpu", "pin_memory": device == "cuda"}
    if learner.offload != "none":
        settings["offload_optimizer"] = host
    if learner.offload == "parameters":
        settings["offload_param"] = host
    return settings
