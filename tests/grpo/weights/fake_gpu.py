"""CUDA and NCCL, faked where their libraries begin. Our senders and vLLM's receiving code run unchanged on a CPU.

The current stream belongs to a thread, so each member of a push is a thread (threaded_push.py). A fake GPU tensor is a
CPU tensor. NCCL's fake copies a broadcast when the sender starts it, and its stream is busy until all receivers have
the bytes, or until the communicator is aborted.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.device_communicators.pynccl_wrapper import ncclUniqueId
from vllm.distributed.weight_transfer import ipc_engine, packed_tensor

GPU = "GPU-1111"
# A hang of the code that is tested ends here.
PATIENCE_S = 20.0


class Stream:
    """A stream: the broadcasts that were started on it."""

    def __init__(self, name: str = "a side stream", **_: Any) -> None:
        self.name = name
        self.cuda_stream = id(self) & 0xFFFF
        self.pending: list[Broadcast] = []

    def wait_stream(self, other: Stream) -> None:
        self.pending += other.pending

    def query(self) -> bool:
        return all(one.done for one in self.pending)

    def synchronize(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.query():
            assert time.monotonic() < until, f"{self.name} is busy for ever"
            time.sleep(0.0005)


class Event:
    """Knows the work that was on the current stream when it was recorded."""

    def record(self) -> None:
        self._pending = list(torch.cuda.current_stream().pending)

    def query(self) -> bool:
        return all(one.done for one in self._pending)


@dataclasses.dataclass
class Broadcast:
    """The sender's bytes, on their way to the other ranks."""

    content: bytes
    missing: int
    aborted: bool = False

    @property
    def done(self) -> bool:
        return self.aborted or not self.missing


class World:
    """What the ranks of one communicator share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.size = 0
        self.sums = 0
        self.broadcasts: list[Broadcast] = []
        self.aborts = 0


class FakeNccl:
    """Stands in for vLLM's `NCCLLibrary`, whose functions take addresses of memory."""

    worlds: dict[bytes, World]
    streams: dict[int, Stream]

    def ncclGetRawVersion(self) -> int:
        return 22907

    def ncclGetVersion(self) -> str:
        return "2.29.7"

    def ncclGetUniqueId(self) -> ncclUniqueId:
        unique = ncclUniqueId()
        for place, byte in enumerate(os.urandom(128)):
            unique.internal[place] = byte
        return unique

    def ncclCommInitRank(self, size: int, unique: ncclUniqueId, rank: int) -> Any:
        world = self.worlds.setdefault(bytes(unique.internal), World())
        with world.changed:
            world.size += 1
            world.changed.notify_all()
            assert world.changed.wait_for(lambda: world.size == size, PATIENCE_S), "a rank never joined"
        return SimpleNamespace(world=world, rank=rank, received=0)

    def ncclAllReduce(
        self, send: Any, receive: Any, count: int, kind: int, how: int, communicator: Any, stream: Any
    ) -> None:
        world = communicator.world
        with world.changed:
            world.sums += 1
            world.changed.notify_all()
            assert world.changed.wait_for(lambda: world.sums >= world.size, PATIENCE_S), "a rank is missing"

    def ncclBroadcast(
        self, send: Any, receive: Any, count: int, kind: int, root: int, communicator: Any, stream: Any
    ) -> None:
        assert kind == 1, "buckets are bytes"
        world = communicator.world
        with world.changed:
            if communicator.rank == root:
                world.broadcasts.append(Broadcast(ctypes.string_at(send, count), world.size - 1))
                torch.cuda.current_stream().pending.append(world.broadcasts[-1])
                world.changed.notify_all()
                return
            there = world.changed.wait_for(lambda: len(world.broadcasts) > communicator.received, PATIENCE_S)
            assert there, "no bytes came"
            one = world.broadcasts[communicator.received]
            assert len(one.content) == count, f"{len(one.content)} bytes were sent, {count} were expected"
            ctypes.memmove(receive, one.content, count)
            communicator.received += 1
            one.missing -= 1

    def ncclCommAbort(self, communicator: Any) -> None:
        world = communicator.world
        with world.changed:
            world.aborts += 1
            for one in world.broadcasts:
                one.aborted = one.aborted or one.missing > 0
            world.changed.notify_all()


@dataclasses.dataclass
class FakeGpu:
    """What a test may look at."""

    worlds: dict[bytes, World]
    shared: dict[bytes, weakref.ref[Tensor]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """Fake CUDA and NCCL for the whole process."""
    found = FakeGpu({}, {})
    _fake_streams(monkeypatch)
    _fake_memory(monkeypatch, found)
    monkeypatch.setattr(FakeNccl, "worlds", found.worlds, raising=False)
    monkeypatch.setattr(pynccl, "NCCLLibrary", lambda path: FakeNccl())
    # vLLM compares a tensor's device with the communicator's.
    device = property(lambda self: torch.device("cpu"), lambda self, value: None)
    monkeypatch.setattr(pynccl.PyNcclCommunicator, "device", device, raising=False)
    packed_tensor._get_streams.cache_clear()
    yield found
    packed_tensor._get_streams.cache_clear()


def _fake_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.platforms
    import vllm.utils.torch_utils

    platform = SimpleNamespace(is_rocm=lambda: False, is_cuda=lambda: True, is_cpu=lambda: False)
    monkeypatch.setattr(vllm.platforms, "current_platform", platform, raising=False)
    here = threading.local()

    def current_stream(device: Any = None) -> Stream:
        if not hasattr(here, "stream"):
            here.stream = Stream("the default stream")
        return here.stream

    @contextlib.contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before = torch.cuda.current_stream()
        torch.cuda.set_stream(chosen)
        yield
        torch.cuda.set_stream(before)

    # vLLM's own `torch.cuda.set_stream` stays: it keeps the stream beside torch, and calls this.
    monkeypatch.setattr(vllm.utils.torch_utils, "prev_set_stream", lambda chosen: setattr(here, "stream", chosen))
    assert torch.cuda.set_stream is vllm.utils.torch_utils._patched_set_stream
    for name, fake in {"Stream": Stream, "Event": Event, "current_stream": current_stream, "stream": stream}.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def _fake_memory(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
    def on_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*arguments: Any, **named: Any) -> Tensor:
            if str(named.get("device", "")).startswith("cuda"):
                named["device"] = "cpu"
            return make(*arguments, **named)

        return made

    for name in ("empty", "zeros"):
        monkeypatch.setattr(torch, name, on_cpu(getattr(torch, name)))
    for name in ("synchronize", "ipc_collect"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(uuid=GPU))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "device_index", lambda *_: contextlib.nullcontext())

    def reduce_tensor(tensor: Tensor) -> tuple[Any, tuple[Any, ...]]:
        """As torch's function does for a CUDA tensor: addresses and counters as bytes and numbers."""
        handle = os.urandom(64)
        gpu.shared[handle] = weakref.ref(tensor)
        place = (0, handle, tensor.untyped_storage().nbytes(), 0, False, os.urandom(64), 0, os.urandom(64), True)
        kind = (torch.Tensor, tensor.size(), tensor.stride(), 0, torch.storage.TypedStorage, tensor.dtype)
        return rebuild_cuda_tensor, (*kind, *place)

    def rebuild_cuda_tensor(*arguments: Any) -> Tensor:
        kind, size, stride, offset, storage, dtype, device, handle, nbytes, *_ = arguments
        assert (kind, storage, device) == (torch.Tensor, torch.storage.TypedStorage, 0)
        tensor = gpu.shared[handle]()
        assert tensor is not None, "the learner has freed memory that a generator still opens"
        assert (tensor.dtype, tensor.untyped_storage().nbytes()) == (dtype, nbytes)
        return torch.as_strided(tensor, size, stride, offset)

    from grpo.weights import gpu_senders

    monkeypatch.setattr(gpu_senders, "reduce_tensor", reduce_tensor)
    monkeypatch.setattr(torch.multiprocessing.reductions, "rebuild_cuda_tensor", rebuild_cuda_tensor)
    monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", rebuild_cuda_tensor)
