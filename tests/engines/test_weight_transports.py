"""Pushes to vLLM that go past Ray's object store, proven by the probe."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from setups_for_tests import CPU, generator_setup, learner_setups, random_batch, random_sequences

from grpo import config
from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.weights.sync import TOLERANCES, WeightMismatch, WeightSync

pytestmark = pytest.mark.slow

PROBE = [list(sequence.token_ids) for sequence in random_sequences(3, seed=9)]
GPU = config.ClusterConfig(device="gpu", start_deadline_s=240, step_deadline_s=120)

Pair = tuple[LearnerGroup, GeneratorGroup]


def sync_of(pair: Pair, bucket_bytes: int = 1 << 14, tolerance: float = TOLERANCES["float32"]) -> WeightSync:
    return WeightSync(*pair, bucket_bytes, tolerance)


@pytest.fixture(scope="module")
def pairs(ray_running: None, tied_policy: str, untied_policy: str) -> Iterator[dict[str, Pair]]:
    """`tied`: ZeRO-1, two replicas in their actors. `untied`: ZeRO-3 on two ranks, an engine in its own process."""
    with contextlib.ExitStack() as opened:
        clusters = {
            "tied": opened.enter_context(Cluster(CPU, Plan(1, 1, 2, 1, 1))),
            "untied": opened.enter_context(Cluster(CPU, Plan(2, 1, 1, 1, 1))),
        }
        learners = {
            "tied": learner_setups(tied_policy, zero_stage=1),
            "untied": learner_setups(untied_policy, ranks=2, zero_stage=3),
        }
        generators = {
            "tied": [generator_setup(tied_policy, replica=index) for index in range(2)],
            "untied": [generator_setup(untied_policy, engine="own_process")],
        }
        joins: dict[str, Any] = {}
        for name, cluster in clusters.items():
            setups = [dataclasses.replace(setup, transport="gloo") for setup in generators[name]]
            joins[name] = (cluster.start_learner(learners[name]), cluster.start_generators(setups, 120, 120))
        started = {name: (learner(), sampling()) for name, (learner, sampling) in joins.items()}
        for learner, sampling in started.values():
            learner.connect(sampling, "gloo", 1, 60.0)
        yield started


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_push_over_gloo_arrives_and_its_lack_is_seen(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    sync = sync_of(pair)
    # The same connections carry one push after the other, in many buckets and in one.
    for version, bucket_bytes in enumerate((1 << 14, 1 << 30)):
        pair[0].step(random_batch(pair[0].ranks, seed=version))
        assert min(sync.compare(PROBE)) > 10 * TOLERANCES["float32"], "the probe must see a step that was not pushed"
        assert sync_of(pair, bucket_bytes).push(version, PROBE) < 1e-5


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_sparse_push_over_gloo_arrives(pairs: dict[str, Pair], name: str) -> None:
    learner, generators = pairs[name]
    dense = learner.link
    learner.connect(generators, "gloo", 1, 60.0, sparse=True)
    shares = []
    for version in range(20, 23):
        learner.step(random_batch(learner.ranks, seed=version))
        assert sync_of((learner, generators)).push(version, PROBE) < 1e-5
        pushed = learner.take_pushed()
        shares.append(pushed.changed / pushed.elements)
    assert shares[0] == 1.0
    if name == "untied":
        # Adam leaves the embeddings of tokens that no batch had alone; tied ones have the head's gradient.
        assert max(shares[1:]) < 1.0, shares
    assert sync_of((learner, generators)).push(23, PROBE) < 1e-5
    pushed = learner.take_pushed()
    assert pushed.changed == 0 and pushed.nbytes < pushed.elements
    learner.link = dense
    assert sync_of((learner, generators)).push(24, PROBE) < 1e-5


@dataclasses.dataclass(frozen=True)
class Lossy:
    """A learner that never announces one of the names of its tensors."""

    learner: LearnerGroup
    dropped: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def export_buckets(self, bucket_bytes: int) -> Iterator[Any]:
        assert self.learner.link is not None
        kept = [
            dataclasses.replace(
                tensor, further_names=tuple(name for name in tensor.further_names if name != self.dropped)
            )
            for tensor in self.learner.tensors()
        ]
        assert kept != self.learner.tensors()
        return self.learner.link.buckets(self.learner._ranks, kept, bucket_bytes)


def test_the_probe_catches_a_tied_head_that_was_not_sent_over_gloo(pairs: dict[str, Pair]) -> None:
    learner, generators = pairs["tied"]
    learner.step(random_batch(1, seed=7))
    with pytest.raises(WeightMismatch, match=r"never sent lm_head\.weight$"):
        sync_of((Lossy(learner, "lm_head.weight"), generators)).push(3, PROBE)  # type: ignore[arg-type]
    assert sync_of((learner, generators)).push(4, PROBE) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA devices")
@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_a_push_between_gpus_arrives(ray_running: None, untied_policy: str, transport: Literal["nccl", "ipc"]) -> None:
    """`nccl`: learner and generator on a GPU each. `ipc`: both on one."""
    shared = transport == "ipc"
    if not shared and torch.cuda.device_count() < 2:
        pytest.skip("nccl needs two GPUs")
    settings = GPU.model_copy(update={"share_gpus": shared})
    (learner_setup,) = learner_setups(untied_policy, dtype="bfloat16")
    setup = generator_setup(untied_policy, engine="own_process")
    small = setup.generator.model_copy(update={"gpu_memory_share": 0.2, "compile": False})
    setup = dataclasses.replace(setup, device="cuda", dtype="bfloat16", generator=small, transport=transport)
    with Cluster(settings, Plan(1, 1, 1, 1, 1, share_gpus=shared)) as cluster:
        joins = (
            cluster.start_learner([dataclasses.replace(learner_setup, device="cuda")]),
            cluster.start_generators([setup], 120, 120),
        )
        pair = (joins[0](), joins[1]())
        pair[0].connect(pair[1], transport, 1, 60.0)
        tolerance = TOLERANCES["bfloat16"]
        for version, bucket_bytes in enumerate((1 << 13, 1 << 30, 1 << 13)):
            for seed in range(4):
                pair[0].step(random_batch(1, seed=seed))
            assert min(sync_of(pair).compare(PROBE)) > tolerance
            assert sync_of(pair, bucket_bytes, tolerance).push(version, PROBE) < tolerance
