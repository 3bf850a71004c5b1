"""vLLM's NCCL and IPC engines, extended for pushes: error messages name missing members, and no data is pickled.

These engines have not run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from grpo.weights.buckets import under_all_names
from grpo.weights.engines import BucketUpdate, GroupInit
from grpo.weights.group import RollCall
from grpo.weights.nccl import nccl_communicator


@dataclass
class NumberedUpdate(NCCLWeightTransferUpdateInfo):
    """A bucket with its number. Sender and receivers use the number to report for which bucket they are ready."""

    number: int
    further_names: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class NamedIpcUpdate(IPCWeightTransferUpdateInfo):
    """A bucket in shared memory, with the further names of its tensors."""

    further_names: dict[str, list[str]] = field(default_factory=dict)


@dataclass(kw_only=True)
class GroupNcclInit(NCCLWeightTransferInitInfo):
    """An invitation to a group, in vLLM's form and in the form of `grpo.weights.engines`."""

    group: GroupInit


class NcclWeightTransferEngine(NCCLWeightTransferEngine):
    """Reports its arrival at each bucket, and receives the bucket as one packed broadcast."""

    update_info_cls: Any = NumberedUpdate
    _roll: RollCall | None = None

    def parse_init_info(self, init_dict: dict[str, Any]) -> NCCLWeightTransferInitInfo:
        """Read an invitation."""
        group = GroupInit(**init_dict)
        return GroupNcclInit(
            master_address=group.address,
            master_port=group.port,
            rank_offset=group.first_rank,
            world_size=len(group.members),
            packed=True,
            # The sender has already cut the policy into buckets, so vLLM must not split a bucket again.
            packed_buffer_size_bytes=sys.maxsize,
            packed_num_buffers=1,
            group=group,
        )

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Leave the earlier group, if there is one, and join the group of this invitation."""
        assert isinstance(init_info, GroupNcclInit)
        self.shutdown()
        self.packed = init_info.packed
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        self.packed_num_buffers = init_info.packed_num_buffers
        self._roll = init_info.group.roll_call(self.parallel_config.rank)
        self.model_update_group = nccl_communicator(self._roll, self.device)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive and load one bucket."""
        assert self._roll is not None and isinstance(update_info, NumberedUpdate)
        self._roll.arrive(f"bucket {update_info.number}")
        with _under_all_names(self, update_info.further_names):
            super().receive_weights(update_info)


class IpcWeightTransferEngine(IPCWeightTransferEngine):
    """Opens each bucket in the memory of the GPU that the generator shares with a learner rank."""

    def parse_init_info(self, init_dict: dict[str, Any]) -> IPCWeightTransferInitInfo:
        """Return constant settings, because shared memory needs no connection."""
        return IPCWeightTransferInitInfo(packed=True)

    def parse_update_info(self, update_dict: dict[str, Any]) -> IPCWeightTransferUpdateInfo:
        """Restore the handles from their numbers and bytes."""
        plain = {name: value for name, value in update_dict.items() if name != "handles"}
        bucket = BucketUpdate(**plain).bucket
        one_row = (torch.Size([bucket.nbytes]), (1,), 0, torch.storage.TypedStorage, torch.uint8)
        return NamedIpcUpdate(
            names=plain["names"],
            dtype_names=plain["dtype_names"],
            shapes=plain["shapes"],
            ipc_handles={gpu: (torch.Tensor, *one_row, *handle) for gpu, handle in update_dict["handles"]},
            tensor_sizes=[tensor.nbytes for tensor in bucket.tensors],
            further_names=bucket.further_names,
        )

    def receive_weights(self, update_info: IPCWeightTransferUpdateInfo) -> None:
        """Load one bucket."""
        assert isinstance(update_info, NamedIpcUpdate)
        with _under_all_names(self, update_info.further_names):
            super().receive_weights(update_info)
        # vLLM keeps the last bucket's memory open for further parts of the same memory. Here, each bucket has its own
        # memory, which the learner can free only when it is closed.
        self._packed_importer.close()


@dataclass(frozen=True, slots=True)
class _AllNames:
    """A model that gets each tensor under all of its names. vLLM's engines only call its `load_weights`."""

    model: Any
    further_names: Mapping[str, Sequence[str]]

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> Any:
        return self.model.load_weights(under_all_names(tensors, self.further_names))


@contextlib.contextmanager
def _under_all_names(engine: Any, further_names: Mapping[str, Sequence[str]]) -> Iterator[None]:
    model = engine.model
    engine.model = _AllNames(model, further_names)
    try:
        yield
    finally:
        engine.model = model
