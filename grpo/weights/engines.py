"""Receive pushed weights in vLLM's workers. Each transport has its own weight-transfer engine.

A worker of vLLM creates the weight-transfer engine that `grpo.weights.registry` registered for the transport. All these
engines load tensors through vLLM's layerwise reload, as vLLM's own weight-transfer engines do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from grpo.weights.buckets import Bucket, TensorInfo, further_names_in, under_all_names
from grpo.weights.group import GlooGroup, Invitation, RollCall
from grpo.weights.receiver import BucketReceiver


@dataclass
class NothingToInit(WeightTransferInitInfo):
    """No data, because a transport by files needs no connection."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """The path of a safetensors file that holds a bucket."""

    path: str


class FileWeightTransferEngine(WeightTransferEngine[NothingToInit, FileUpdate]):
    """Loads safetensors files. Their bytes came through Ray's object store."""

    init_info_cls = NothingToInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: NothingToInit) -> None:
        """Do nothing: files need no connection."""

    def start_weight_update(self) -> None:
        """Prepare the model."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket."""
        # The method of the base class also waits for an accelerator. This machine may have no accelerator, so do not
        # call that method.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load one file."""
        with safe_open(update_info.path, framework="pt") as file:
            further_names = further_names_in(file.metadata())
        model: Any = self.model
        model.load_weights(under_all_names(load_file(update_info.path).items(), further_names))

    def finish_weight_update(self) -> None:
        """Complete the model after all buckets."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Do nothing: there is nothing to release."""


@dataclass
class GroupInit(WeightTransferInitInfo):
    """An invitation to a group; see `grpo.weights.group.Invitation`.

    Attributes:
        address: address of the learner's rank 0.
        port: port of the store on that address.
        members: names of all members. The learner is the first.
        deadline_s: longest wait for any member, in seconds.
        first_rank: rank of this engine's first worker.
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
    further_names: dict[str, list[str]] = field(default_factory=dict)
    sparse: bool = False

    @property
    def bucket(self) -> Bucket:
        """The bucket, with the same layout as at the sender."""
        tensors = zip(self.names, self.dtype_names, self.shapes, strict=True)
        infos = tuple(
            TensorInfo(name, dtype, tuple(shape), tuple(self.further_names.get(name, ())))
            for name, dtype, shape in tensors
        )
        return Bucket(self.number, infos, sparse=self.sparse)


class GlooWeightTransferEngine(WeightTransferEngine[GroupInit, BucketUpdate]):
    """Receives buckets over gloo, and loads each block while the next block arrives."""

    init_info_cls = GroupInit
    update_info_cls = BucketUpdate
    _receiver: BucketReceiver | None = None

    def init_transfer_engine(self, init_info: GroupInit) -> None:
        """Leave the earlier group, if there is one, and join the group of this invitation."""
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
        """Complete the model after all buckets."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group."""
        if self._receiver is not None:
            self._receiver.close()
        self._receiver = None
