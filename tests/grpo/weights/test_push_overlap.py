"""The learner gathers and packs a bucket while generators load the bucket before it, within a bound of memory."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from fake_gpu import FakeGpu, gpu
from threaded_push import Push, Transport, pushing
from torch import nn

from grpo.weights import gpu_senders
from grpo.weights.buckets import Bucket, cut

__all__ = ["gpu"]

BUCKET_BYTES = 600
TRANSPORTS = ["gloo", "nccl", "ipc"]


class Gathering:
    """Stands in for ZeRO-3's gathering: which parameters were whole, and the most bytes that were whole at once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.peak = 0
        self.fails_at: int | None = None
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def __call__(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        size = sum(parameter.nbytes for parameter in parameters)
        with self._changed:
            if self.fails_at in map(id, parameters):
                raise RuntimeError("a rank has left the gathering")
            self.seen |= set(map(id, parameters))
            self._held += size
            self.peak = max(self.peak, self._held)
            self._changed.notify_all()
        try:
            yield
        finally:
            self._held -= size

    def comes(self, parameter: nn.Parameter, wait_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: id(parameter) in self.seen, wait_s)

    @property
    def all_released(self) -> bool:
        return self._held == 0


def buckets_of(push: Push) -> list[Bucket]:
    return cut(push.learner.subject.outlet.tensors(), BUCKET_BYTES)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_bucket_is_gathered_while_the_one_before_it_is_loaded(gpu: FakeGpu, transport: Transport) -> None:
    """A receiver that is slow with each bucket: it waits until the next bucket is gathered, and not the one after."""
    gathering = Gathering()
    with pushing(transport, gather=gathering) as push:
        buckets, parameters = buckets_of(push), dict(push.policy.named_parameters())
        first = [parameters[bucket.tensors[0].name] for bucket in buckets]
        order: list[str] = []

        def slow(bucket: Bucket) -> None:
            place = [one.names for one in buckets].index(bucket.names)
            if place + 1 < len(buckets):
                assert gathering.comes(first[place + 1], 5.0), "the learner waits until the bucket is loaded"
                order.append("gathered ahead")
            if place + 2 < len(buckets):
                assert not gathering.comes(first[place + 2], 0.05), "a third bucket"

        push.workers[0].after = slow
        for seed in range(2):
            push.step(seed)
            gathering.seen.clear()
            push(BUCKET_BYTES)
            assert push.differing() == []
        assert len(buckets) > 5 and len(order) == 2 * (len(buckets) - 1)
        assert gathering.all_released
        assert gathering.peak <= max(bucket.nbytes for bucket in buckets)


@pytest.mark.parametrize(("transport", "most"), [("nccl", 1), ("ipc", 2)])
def test_packed_buckets_are_freed_before_more_are_packed(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, transport: Transport, most: int
) -> None:
    packed: list[weakref.ref[Any]] = []
    alive: list[int] = []
    pack = gpu_senders.pack

    def counting(*arguments: Any, **more: Any) -> Any:
        packed.append(weakref.ref(result := pack(*arguments, **more)))
        alive.append(sum(one() is not None for one in packed))
        return result

    monkeypatch.setattr(gpu_senders, "pack", counting)
    with pushing(transport) as push:
        for _ in range(2):
            push(BUCKET_BYTES)
        assert len(alive) == 2 * len(buckets_of(push)) and max(alive) == most
        assert push.differing() == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_error_of_gathering_ahead_is_the_error_of_the_push(gpu: FakeGpu, transport: Transport) -> None:
    gathering = Gathering()
    with pushing(transport, gather=gathering) as push:
        parameters = dict(push.policy.named_parameters())
        gathering.fails_at = id(parameters["model.layers.1.mlp.down_proj.weight"])
        with pytest.raises(RuntimeError, match=r"^a rank has left the gathering$"):
            push(BUCKET_BYTES)
        assert gathering.all_released
