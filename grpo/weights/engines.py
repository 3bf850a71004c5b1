"""vLLM's ends of a push: engines of its weight-transfer interface, one for each transport.

A worker of vLLM makes the one that `grpo.weights.registry` has registered under the transport's name. All load the
tensors through vLLM's layerwise reload, as its own engines do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from grpo.weights.buckets import Bucket, TensorInfo
from grpo.weights.group import GlooGroup, Invitation, RollCall
from grpo.weights.receiver import BucketReceiver


@dataclass
class NothingToInit(WeightTransferInitInfo):
    """There is no connection to make."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """A bucket in a safetensors file.

    Attributes:
        path: the file.
    """

    path: str


class FileWeightTransferEngine(WeightTransferEngine[NothingToInit, FileUpdate]):
    """Loads safetensors files; their bytes came through Ray's object store."""

    init_info_cls = NothingToInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: NothingToInit) -> None:
        """There is no connection to make."""

    def start_weight_update(self) -> None:
        """Prepare the model."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket."""
        # The base class waits for an accelerator here, which a CPU does not have.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load one file."""
        model: Any = self.model
        model.load_weights(list(load_file(update_info.path).items()))

    def finish_weight_update(self) -> None:
        """Put the model together again."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """There is nothing to release."""


@dataclass
class GroupInit(WeightTransferInitInfo):
    """An invitation to a group; see `grpo.weights.group.Invitation`.

    Attributes:
        address: of the learner's rank 0.
        port: where its store listens.
        members: name of every member, the learner first.
        deadline_s: longest wait for any of them.
        first_rank: the rank of this engine's first worker.
    """

    address: str
    port: int
    members: list[str]
    deadline_s: float
    first_rank: int

    def roll_call(self, worker: int) -> RollCall:
        """Connect a worker to the store."""
        invitation = Invitation(self.address, self.port, tuple(self.members), self.deadline_s)
        return RollCall(invitation, self.first_rank + worker)


@dataclass
class BucketUpdate(WeightTransferUpdateInfo):
    """A bucket whose bytes come over the group; see `grpo.weights.buckets.Bucket`."""

    number: int
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    sparse: bool = False

    @property
    def bucket(self) -> Bucket:
        """The same as the sender has it."""
        tensors = zip(self.names, self.dtype_names, self.shapes, strict=True)
        infos = tuple(TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in tensors)
        return Bucket(self.number, infos, sparse=self.sparse)


class GlooWeightTransferEngine(WeightTransferEngine[GroupInit, BucketUpdate]):
    """Receives buckets over gloo, and loads each block while the next still comes."""

    init_info_cls = GroupInit
    update_info_cls = BucketUpdate
    _receiver: BucketReceiver | None = None

    def init_transfer_engine(self, init_info: GroupInit) -> None:
        """Join the group, after leaving an earlier one."""
        self.shutdown()
        self._receiver = BucketReceiver(GlooGroup(init_info.roll_call(self.parallel_config.rank)))

    def start_weight_update(self) -> None:
        """Prepare the model."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load one bucket."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: BucketUpdate) -> None:
        """Receive and load one bucket."""
        assert self._receiver is not None, "init_transfer_engine comes first"
        model: Any = self.model
        self._receiver.receive(update_info.bucket, model.load_weights)

    def finish_weight_update(self) -> None:
        """Put the model together again."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group."""
        if self._receiver is not None:
            self._receiver.close()
        self._receiver = None
