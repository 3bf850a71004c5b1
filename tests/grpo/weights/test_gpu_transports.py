"""Pushes by `ipc` and `nccl` without a GPU: our senders, vLLM's receiving engines, and its reload are the real ones."""

from __future__ import annotations

import time

import pytest
from fake_gpu import FakeGpu, gpu
from threaded_push import Transport, pushing

from grpo.weights.buckets import Bucket

__all__ = ["gpu"]


@pytest.mark.parametrize(("transport", "generators"), [("nccl", 1), ("nccl", 2), ("ipc", 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_arrive_bit_for_bit(gpu: FakeGpu, transport: Transport, generators: int, tied: bool) -> None:
    """Several pushes, in many buckets and in one. Each call checks that its thread's current stream stays."""
    with pushing(transport, generators, tied=tied) as push:
        assert len(push.differing()) > 10 * generators
        for seed, bucket_bytes in enumerate((1, 600, 1 << 20)):
            push.step(seed)
            names = push(bucket_bytes)
            assert sorted(names) == sorted(dict(push.policy.named_parameters(remove_duplicate=False)))
            assert push.differing() == []
        assert len(gpu.worlds) == (transport == "nccl"), "one communicator for all pushes"


def test_a_tied_tensor_travels_once_and_is_loaded_under_both_names(gpu: FakeGpu) -> None:
    with pushing("nccl") as push:
        loaded: list[str] = []
        load = push.workers[0].policy.load_weights
        push.workers[0].policy.load_weights = lambda tensors: (loaded.extend(n for n, _ in tensors), load(tensors))
        push(600)
        assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(loaded) and len(loaded) == len(set(loaded))
        (world,) = gpu.worlds.values()
        sent = sum(len(one.content) for one in world.broadcasts)
        assert sent == sum(parameter.nbytes for parameter in push.policy.parameters())


@pytest.mark.parametrize("where", ["before it is ready for a bucket", "inside the broadcast"])
def test_a_generator_that_dies_ends_an_nccl_push_at_once(gpu: FakeGpu, where: str) -> None:
    """The driver learns of the loss, and the learner aborts. Then the learner pushes to the generator in its place."""
    with pushing("nccl", 2, deadline_s=40.0) as push:
        push(600)
        dead = push.workers[1]

        def dies(bucket: Bucket) -> None:
            if bucket.number % 3 == 2:
                if where == "inside the broadcast":
                    # It has said that it is ready, and then takes no bytes.
                    dead.engine._roll.arrive(f"bucket {bucket.number}")
                push.lost = "generator 1 was lost: its process died"
                raise RuntimeError("this is the end of a process")

        dead.before = dies
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=r"^the push of weights was ended, because generator 1 was lost: its pr"):
            push(600)
        assert time.monotonic() - began < 10
        (world,) = gpu.worlds.values()
        assert world.aborts >= 1 and all(one.done for one in world.broadcasts)
        push.lost = None
        push.replace(1)
        push.replace(0)
        push.step(1)
        push(600)
        assert push.differing() == []


def test_with_ipc_the_learner_frees_what_was_read(gpu: FakeGpu) -> None:
    with pushing("ipc") as push:
        push(1)
        assert len(gpu.shared) > 5
        assert sum(one() is not None for one in gpu.shared.values()) <= 2
        push.learner.start(lambda rank: rank.outlet.release(), None).result()
        assert not any(one() is not None for one in gpu.shared.values())
