"""NCCL's group, as both ends of its transport join it. It has met no GPU yet."""

from __future__ import annotations

import torch
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.utils.nccl import unpinned_nccl_env

from grpo.weights.group import RollCall


def nccl_communicator(roll: RollCall, device: torch.device) -> PyNcclCommunicator:
    """vLLM's communicator over all members; call it on all of them.

    Raises:
        TimeoutError: some have not come by the deadline.
        RuntimeError: NCCL cannot be used here.
    """
    roll.arrive("join")
    roll.wait_for_others("join", "joining the group that carries the weights")
    group = StatelessProcessGroup(roll.rank, len(roll.members), PrefixStore("nccl", roll.store))
    with unpinned_nccl_env():
        communicator = PyNcclCommunicator(group, device)
    if communicator.disabled:
        raise RuntimeError(
            "weight_sync.transport=nccl: vLLM could not load NCCL here, or VLLM_DISABLE_PYNCCL is set; install it, or "
            "use object_store"
        )
    return communicator
