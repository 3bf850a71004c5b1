"""A push over gloo between plain processes: learner ranks under DeepSpeed, receivers that only keep what they get.

Each process stands in for a Ray actor: `process.method.remote(...)` and `process.start(verb, doing)` start calls in
it, which are made in order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ray import cloudpickle
from torch import Tensor

from grpo.types import Phase
from grpo.weights.buckets import Bucket
from grpo.weights.group import GlooGroup, Invitation, RollCall
from grpo.weights.link import WeightLink
from grpo.weights.patches import Pushed
from grpo.weights.receiver import BucketReceiver

Digests = dict[str, str]


class Receiver:
    """What a vLLM worker is to a push."""

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}
        self._held: list[Tensor] = []
        self._blocks: list[list[str]] = []
        self._receiver: BucketReceiver | None = None

    def join_sender(self, told: dict[str, Any]) -> None:
        invitation = Invitation(told["address"], told["port"], tuple(told["members"]), told["deadline_s"])
        self._receiver = BucketReceiver(GlooGroup(RollCall(invitation, told["first_rank"])))

    def update(self, bucket: Bucket) -> list[str]:
        assert self._receiver is not None
        self._receiver.receive(bucket, self._load)
        return bucket.names

    def _load(self, block: list[tuple[str, Tensor]]) -> None:
        self._blocks.append([name for name, _ in block])
        self._weights.update((name, tensor.clone()) for name, tensor in block)
        # vLLM holds on to what it got until a layer is whole.
        if any("layers.0." in name for name, _ in block):
            self._held += [tensor for _, tensor in block]

    def held_sum(self) -> float:
        """Of all that is still held, as it is now."""
        return float(sum(tensor.double().sum() for tensor in self._held))

    def blocks(self) -> list[list[str]]:
        return self._blocks

    def digests(self) -> Digests:
        return digests(self._weights.items())

    def spoil(self, name: str) -> None:
        """Change a bit of what the next changes of a tensor will be applied to."""
        assert self._receiver is not None
        self._receiver._patches._copies[name][0] ^= 1


class Learner:
    """What the learner's actor is to a push."""

    def __init__(self, path: str, rank: int, ranks: int, zero_stage: int, port: int, more: Any = None) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        from setups_for_tests import learner_setups

        from grpo.learner.rank import LearnerRank

        setup = learner_setups(path, ranks=ranks, zero_stage=zero_stage, **(more or {}))[rank]
        self._rank = LearnerRank(setup, "127.0.0.1", port)
        self._number = rank

        self.outlet = self._rank.outlet

    def tensors(self) -> Any:
        return self.outlet.tensors()

    def step(self, seed: int, ranks: int) -> None:
        from ranks_without_ray import small_microbatches

        self._rank.step(small_microbatches(seed, ranks).ranks[self._number])

    def digests(self) -> Digests:
        return digests(self._rank.weights())

    def take_pushed(self) -> Pushed:
        return self.outlet.take_pushed()

    def export(self, bucket_bytes: int) -> tuple[int, Digests]:
        """Peak memory beside the policy while it is exported as files, and what they held."""
        import safetensors.torch

        found: Digests = {}
        begin = reset_peak()
        for file in self.outlet.files(bucket_bytes):
            assert file.nbytes < bucket_bytes + (1 << 16)
        peak = peak_memory() - begin
        for file in self.outlet.files(bucket_bytes):
            found |= digests(safetensors.torch.load(file.tobytes()).items())
        return peak, found

    def reset_peak(self) -> int:
        return reset_peak()

    def peak(self) -> int:
        return peak_memory()


class PlainLearner:
    """The learner's end without DeepSpeed: tensors by name, which are always whole."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: str = "float32") -> None:
        from grpo.weights.outlet import WeightOutlet
        from grpo.weights.source import PolicyWeights

        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(seed)
        self._module = torch.nn.Module()
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator).to(getattr(torch, dtype))
            _put(self._module, name.split("."), torch.nn.Parameter(values))
        self._weights = PolicyWeights(self._module, getattr(torch, dtype))
        self.outlet = WeightOutlet(self._weights, 0, "127.0.0.1")

    def tensors(self) -> Any:
        return self.outlet.tensors()

    @torch.no_grad()
    def change(self, share: float, seed: int) -> None:
        """Change so many of each tensor's elements."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self._module.parameters():
            flat = parameter.view(-1)
            count = round(share * len(flat))
            flat[torch.randperm(len(flat), generator=generator)[:count]] += 1.0

    def take_pushed(self) -> Pushed:
        return self.outlet.take_pushed()

    def digests(self) -> Digests:
        return digests(iter(self._weights))


def _put(module: torch.nn.Module, path: list[str], parameter: torch.nn.Parameter) -> None:
    for name in path[:-1]:
        if not hasattr(module, name):
            module.add_module(name, torch.nn.Module())
        module = getattr(module, name)
    module.register_parameter(path[-1], parameter)


def digests(weights: Any) -> Digests:
    """Name -> hash of shape and values."""
    return {
        name: hashlib.sha256(str(tuple(tensor.shape)).encode() + tensor.float().numpy().tobytes()).hexdigest()
        for name, tensor in weights
    }


def reset_peak() -> int:
    """Resident bytes now; `peak_memory` counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """The most resident bytes since."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


class RemoteProcess:
    """An object in a process of its own, called as a Ray actor is."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = get_context("forkserver")
        # Importing takes longer than all that is tried; one process does it, and the others are its copies.
        context.set_forkserver_preload(["grpo.learner.rank", "grpo.weights.receiver", "setups_for_tests"])
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        # What a process frees goes back at once, so that its resident memory is what it holds.
        with mock.patch.dict(os.environ, DS_ACCELERATOR="cpu", MALLOC_MMAP_THRESHOLD_=str(1 << 17)):
            self.process.start()
        theirs.close()
        self._answers = 0
        self._calls = 0
        self._known: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(self, name)

    def start(self, verb: Callable[..., Any], doing: Phase | None, *arguments: Any) -> tuple[RemoteProcess, int]:
        return self.call("start", (cloudpickle.dumps(verb), *arguments))

    def call(self, name: str, arguments: tuple[Any, ...]) -> tuple[RemoteProcess, int]:
        self._pipe.send((name, arguments))
        self._calls += 1
        return self, self._calls - 1

    def result(self, number: int, deadline: float) -> Any:
        while self._answers <= number:
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"call {number} did not end")
            self._known[self._answers] = self._pipe.recv()
            self._answers += 1
        answer = self._known[number]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        """Freeze it: it no longer answers anybody, and its connections stay."""
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End a stop."""
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@dataclasses.dataclass(frozen=True)
class _Method:
    process: RemoteProcess
    name: str

    def remote(self, *arguments: Any) -> Any:
        return self.process.call(self.name, arguments)


def wait_for(
    references: Sequence[Any], deadline_s: float, what: str, meanwhile: Callable[[], None] | None = None
) -> list[Any]:
    deadline = time.monotonic() + deadline_s
    return [process.result(number, deadline) for process, number in references]


def get(reference: Any) -> Any:
    return wait_for([reference], 240, "a call")[0]


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    served = make(*arguments)
    while True:
        try:
            name, given = pipe.recv()
        except EOFError:
            return
        try:
            if name == "start":
                pipe.send(cloudpickle.loads(given[0])(served, *given[1:]))
            else:
                pipe.send(getattr(served, name)(*given))
        except (TimeoutError, RuntimeError, ValueError) as failure:
            pipe.send(failure)


@contextlib.contextmanager
def processes(*made: tuple[Any, ...]) -> Iterator[list[RemoteProcess]]:
    """(class, arguments...) -> a process for each."""
    started = [RemoteProcess(*one) for one in made]
    try:
        yield started
    finally:
        for one in started:
            one.kill()


def push(
    link: WeightLink, learners: Sequence[RemoteProcess], receivers: Sequence[RemoteProcess], bucket_bytes: int
) -> list[str]:
    """What the driver does in a push; the names that arrived."""
    names, loading = [], []
    for bucket in link.buckets(learners, get(learners[0].tensors.remote()), bucket_bytes):
        loading.append([receiver.update.remote(bucket) for receiver in receivers])
        if len(loading) > 1:
            names += wait_for(loading.pop(0), 60, "loading")[0]
    for loaded in loading:
        names += wait_for(loaded, 60, "loading")[0]
    return names


def link_to(receivers: Sequence[RemoteProcess], deadline_s: float = 60.0, *, sparse: bool = False) -> WeightLink:
    return WeightLink("gloo", lambda: receivers, 1, deadline_s, wait_for, sparse=sparse)
