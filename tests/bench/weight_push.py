"""How fast weights are pushed over gloo, beside a plain gloo broadcast of the same bytes between the same processes.

    python tests/bench/weight_push.py [--receivers 1] [--layers 7] [--bucket-mib 64] [--rounds 15] [--sparse] [--zero3]

First the receivers must hold what the sender has, to the bit, and then both are timed in turns: from the driver's call
to the last answer. A push is the whole of it (announcements, messages, tensors handed over by name) and is timed twice:
to the arrival of all tensors, and with copying each into the receiver's weights, as an engine does at least. The
broadcast is one flat tensor, likewise without and with the copy. There is no vLLM here: what its reload adds does not
depend on the transport. Processor seconds are those of sender and receivers together, which a busy machine changes less
than the clock's. Memory is each process's resident peak during its first push, above what it held before.

`--sparse` measures sparse pushes instead, of the same shapes in bfloat16: bytes that leave the learner, seconds to the
arrival of all tensors and processor seconds of both ends, with so many of the elements changed since the push before,
beside whole pushes of that policy.

`--zero3` measures pushes from two ranks under DeepSpeed's ZeRO-3, in pairs in one run: the sender, which gathers ahead,
and the same sender without it, which waits for the receivers before it gathers, and for each part's bytes before it
gathers the next part. `--load-ms` lets each receiver wait so long for each bucket after its arrival, as for a device
that loads it; without it, gathering and loading compete for the same processors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from measurement import quartiles
from push_processes import (
    Learner,
    PlainLearner,
    Receiver,
    RemoteProcess,
    digests,
    get,
    link_to,
    peak_memory,
    processes,
    push,
    reset_peak,
    wait_for,
)
from ranks_without_ray import free_port
from torch import Tensor

from grpo.config import NewPolicyConfig
from grpo.policy.new import make_policy
from grpo.weights.buckets import Bucket, messages, runs
from grpo.weights.gloo_sender import _parts
from grpo.weights.source import GATHERED_SHARE

HIDDEN, INTERMEDIATE = 1024, 2816
MIB = 1 << 20


class Sender(PlainLearner):
    """The learner's end, which can also broadcast all its bytes as one tensor."""

    _flat: Tensor | None = None

    def broadcast(self) -> None:
        if self._flat is None:
            self._flat = torch.cat([tensor.reshape(-1) for _, tensor in self._weights]).view(torch.uint8)
        assert self._sender._group is not None
        group = self._sender._group
        group.finish_sending(group.start_sending([self._flat]), 0)

    def processor(self) -> float:
        return time.process_time()

    def reset_peak(self) -> int:
        return reset_peak()

    def peak(self) -> int:
        return peak_memory()


class Target(Receiver):
    """A receiver that copies what it gets into its weights, or only takes it."""

    _flat: Tensor | None = None
    _room: Tensor | None = None
    copies = True
    load_s = 0.0

    def wait_in_each_bucket(self, load_s: float) -> None:
        self.load_s = load_s

    def update(self, bucket: Bucket) -> list[str]:
        names = super().update(bucket)
        time.sleep(self.load_s)
        return names

    def copy(self, copies: bool) -> None:
        self.copies = copies

    def prepare(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._weights = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def _load(self, block: list[tuple[str, Tensor]]) -> None:
        for name, tensor in block:
            if self.copies:
                self._weights[name].copy_(tensor)

    def held(self) -> dict[str, str]:
        return digests(self._weights.items())

    def broadcast(self) -> None:
        if self._flat is None:
            size = sum(tensor.nbytes for tensor in self._weights.values())
            self._flat = torch.zeros(size, dtype=torch.uint8)
            self._room = torch.zeros(size, dtype=torch.uint8)
        assert self._receiver is not None and self._room is not None
        group = self._receiver._group
        group.finish_receiving(group.start_receiving([self._flat])[0], 0)
        if self.copies:
            self._room.copy_(self._flat)

    def processor(self) -> float:
        return time.process_time()

    def reset_peak(self) -> int:
        return reset_peak()

    def peak(self) -> int:
        return peak_memory()


def shapes_of(layers: int) -> dict[str, tuple[int, ...]]:
    """A policy of 49 MiB a layer, in float32."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8192, HIDDEN)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{one}_proj.weight": (HIDDEN, HIDDEN) for one in "qkvo"}
        shapes |= {f"{name}.mlp.{one}_proj.weight": (INTERMEDIATE, HIDDEN) for one in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes |= {f"{name}.{one}_layernorm.weight": (HIDDEN,) for one in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (HIDDEN,)}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(receivers: int, layers: int, bucket_bytes: int, rounds: int) -> None:
    shapes = shapes_of(layers)
    with processes((Sender, shapes), *[(Target,)] * receivers) as (sender, *targets):
        every: list[RemoteProcess] = [sender, *targets]
        wait_for([one.prepare.remote(shapes) for one in targets], 300, "weights")
        link = link_to(targets, deadline_s=120.0)
        link.join([sender])
        before = wait_for([one.reset_peak.remote() for one in every], 300, "memory")
        push(link, [sender], targets, bucket_bytes)
        extra = [peak - start for peak, start in zip(_all(every, "peak"), before, strict=True)]
        expected = get(sender.digests.remote())
        assert all(get(one.digests.remote()) == expected for one in targets), "a push left other weights than were sent"
        total = sum(tensor.nbytes for tensor in get(sender.tensors.remote()))
        largest = max(tensor.nbytes for tensor in get(sender.tensors.remote()))
        seconds: dict[str, list[float]] = {}
        processor: dict[str, list[float]] = {}
        for _ in range(rounds + 1):
            for copies in (False, True):
                wait_for([one.copy.remote(copies) for one in targets], 60, "a setting")
                words = "copied into the weights" if copies else "arrived"
                for what, call in (
                    ("broadcast", lambda: _all(every, "broadcast")),
                    ("push", lambda: push(link, [sender], targets, bucket_bytes)),
                ):
                    used = sum(_all(every, "processor"))
                    seconds.setdefault(f"{what}, {words}", []).append(timed(call))
                    processor.setdefault(f"{what}, {words}", []).append(sum(_all(every, "processor")) - used)
    print(
        f"{total / MIB:.0f} MiB to {receivers} receiver(s), buckets of {bucket_bytes / MIB:.0f} MiB, largest tensor "
        f"{largest / MIB:.0f} MiB; load {os.getloadavg()[0]:.1f}; peak memory above the weights: sender "
        f"{extra[0] / MIB:.1f} MiB, receivers {', '.join(f'{one / MIB:.1f}' for one in extra[1:])} MiB"
    )
    # The first round makes the broadcast's memory.
    rates = {what: [total / one / 1e9 for one in found[1:]] for what, found in seconds.items()}
    for what, found in rates.items():
        spent = statistics.median(processor[what][1:]) / (total / 1e9)
        told = " / ".join(f"{one:.2f}" for one in quartiles(found))
        print(f"  {what:38} GB/s: {told}   processor seconds a GB: {spent:.2f}")
    for words in ("arrived", "copied into the weights"):
        pairs = zip(rates[f"push, {words}"], rates[f"broadcast, {words}"], strict=True)
        ratios = quartiles([ours / plain for ours, plain in pairs])
        print(f"  push against broadcast, {words}: " + " / ".join(f"{one:.2f}" for one in ratios))
        of_medians = statistics.median(rates[f"push, {words}"]) / statistics.median(rates[f"broadcast, {words}"])
        print(f"    of the medians: {of_medians:.2f}")


def measure_sparse(receivers: int, layers: int, bucket_bytes: int, rounds: int) -> None:
    with processes((Sender, shapes_of(layers), 0, "bfloat16"), *[(Target,)] * receivers) as (sender, *targets):
        every: list[RemoteProcess] = [sender, *targets]
        wait_for([one.copy.remote(False) for one in targets], 300, "a setting")
        total = sum(tensor.nbytes for tensor in get(sender.tensors.remote()))
        print(f"{total / MIB:.0f} MiB of bfloat16 to {receivers} receiver(s); load {os.getloadavg()[0]:.1f}")
        dense, sparse = link_to(targets, deadline_s=120.0), link_to(targets, deadline_s=120.0, sparse=True)
        for share in (None, 0.0, 0.01, 0.03, 0.1):
            link = dense if share is None else sparse
            seconds, processor = [], []
            for seed in range(rounds + 1):
                get(sender.change.remote(share or 0.0, seed))
                get(sender.take_pushed.remote())
                used = sum(_all(every, "processor"))
                seconds.append(timed(lambda link=link: push(link, [sender], targets, bucket_bytes)))
                processor.append(sum(_all(every, "processor")) - used)
            sent = get(sender.take_pushed.remote()).nbytes or total
            what = "whole" if share is None else f"sparse, {share:.0%} changed"
            # The first round makes connections, and is whole.
            told = " / ".join(f"{one:.2f}" for one in quartiles(seconds[1:]))
            spent = statistics.median(processor[1:])
            print(f"  {what:20} {sent / MIB:7.1f} MiB ({sent / total:.3f})   s: {told}   processor: {spent:.2f}")


class Rank(Learner):
    """A learner rank under ZeRO-3, which can also gather only when the bytes before have left."""

    def ahead(self, ahead: bool) -> None:
        sender: Any = self.outlet._sender
        sender.send = sender.__class__.send.__get__(sender) if ahead else lambda bucket: in_turns(sender, bucket)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._rank.weights()}


def in_turns(sender: Any, bucket: Bucket) -> None:
    """Send a bucket as before the sender gathered ahead."""
    if sender._group is not None:
        sender._group.wait_for_receivers(bucket.number)
    for run in runs(messages(bucket.tensors), GATHERED_SHARE * bucket.nbytes):
        with sender._weights.whole([tensor.name for message in run for tensor in message.tensors]) as tensors:
            if sender._group is not None:
                works = sender._group.start_sending(_parts(run, tensors))
                sender._group.finish_sending(works, bucket.number)
    if sender._group is not None:
        sender._group.sent(bucket.number)


def measure_zero3(receivers: int, layers: int, bucket_bytes: int, rounds: int, load_s: float) -> None:
    shape = NewPolicyConfig(
        hidden_size=512, layers=layers, heads=4, key_value_heads=4, intermediate_size=2048, tie_embeddings=False
    )
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        make_policy(shape, [], Path(folder) / "policy", 3)
        ranks = [(Rank, str(Path(folder) / "policy"), rank, 2, 3, port) for rank in range(2)]
        with processes(*ranks, *[(Target,)] * receivers) as every:
            learners, targets = every[:2], every[2:]
            shapes = _all(learners, "shapes")[0]
            wait_for([one.prepare.remote(shapes) for one in targets], 300, "weights")
            wait_for([one.wait_in_each_bucket.remote(load_s) for one in targets], 60, "a setting")
            link = link_to(targets, deadline_s=120.0)
            link.join(learners)
            total = sum(tensor.nbytes for tensor in get(learners[0].tensors.remote()))
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(rounds + 1):
                for ahead, found in seconds.items():
                    wait_for([one.ahead.remote(ahead) for one in learners], 60, "a setting")
                    found.append(timed(lambda: push(link, learners, targets, bucket_bytes)))
            sent = _all(learners, "digests")[0]
            assert all(get(one.held.remote()) == sent for one in targets), "a push left other weights than were sent"
    told = {ahead: " / ".join(f"{one:.3f}" for one in quartiles(found[1:])) for ahead, found in seconds.items()}
    ratios = quartiles([new / old for old, new in zip(seconds[False][1:], seconds[True][1:], strict=True)])
    print(
        f"{total / MIB:.0f} MiB under ZeRO-3 on two ranks to {receivers} receiver(s), buckets of "
        f"{bucket_bytes / MIB:.0f} MiB, {1000 * load_s:.0f} ms for each bucket at a receiver; load "
        f"{os.getloadavg()[0]:.1f}\n"
        f"  in turns s: {told[False]}\n  ahead    s: {told[True]}\n"
        f"  ahead against in turns: {' / '.join(f'{one:.2f}' for one in ratios)}"
    )


def _all(every: Sequence[RemoteProcess], method: str) -> list[Any]:
    return wait_for([getattr(one, method).remote() for one in every], 300, method)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receivers", type=int, default=1)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--bucket-mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--zero3", action="store_true")
    parser.add_argument("--load-ms", type=float, default=0.0)
    options = parser.parse_args()
    given = (options.receivers, options.layers, options.bucket_mib * MIB, options.rounds)
    if options.zero3:
        measure_zero3(*given, options.load_ms / 1000)
    else:
        (measure_sparse if options.sparse else measure)(*given)
