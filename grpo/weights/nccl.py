"""Make the NCCL group that the learner and the generators join. This code has not run on a GPU yet."""

from __future__ import annotations

import torch
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.utils.nccl import unpinned_nccl_env

from grpo.weights.group import RollCall


def nccl_communicator(roll: RollCall, device: torch.device) -> PyNcclCommunicator:
    """Return vLLM's communicator over all members; every member must call this.

    Raises:
        TimeoutError: a member did not connect before the deadline.
        RuntimeError: NCCL cannot be used here.
    """
    roll.arrive("join")
    roll.wait_for_others("join", "joining the group that carries the weights")
    group = StatelessProcessGroup(roll.rank, len(roll.members), PrefixStore("nccl", roll.store))
    # vLLM gives this thread a new current stream. The learner must continue on the stream of its own tensors.
    stream = torch.cuda.current_stream(device)
    with unpinned_nccl_env():
        communicator = PyNcclCommunicator(group, device)
    torch.cuda.set_stream(stream)
    if communicator.disabled:
        raise RuntimeError(
            "weight_sync.transport=nccl: vLLM could not load NCCL here, or VLLM_DISABLE_PYNCCL is set; install NCCL "
            "and unset that variable, or use object_store"
        )
    return communicator
