"""Weights over gloo between real processes: what arrives, what it takes, and what happens when somebody is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from push_processes import Learner, PlainLearner, Receiver, RemoteProcess, get, link_to, processes, push, wait_for
from ranks_without_ray import free_port

from grpo.config import NewPolicyConfig
from grpo.policy.new import make_policy
from grpo.weights.link import WeightLink
from grpo.weights.patches import Pushed, WeightsDiffer

pytestmark = pytest.mark.slow

MIB = 1 << 20
# A layer's blocks of 2 MiB and 9 MiB, an embedding of 12 MiB, and small ones between.
SHAPES = {"model.embed_tokens.weight": (3000, 1048), "model.norm.weight": (33,)} | {
    f"model.layers.{layer}.{name}": shape
    for layer in range(3)
    for name, shape in {
        "self_attn.q_proj.weight": (512, 512),
        "self_attn.k_proj.bias": (7,),
        "self_attn.o_proj.weight": (512, 512),
        "mlp.up_proj.weight": (2304, 512),
        "mlp.down_proj.weight": (512, 2304),
        "input_layernorm.weight": (512,),
    }.items()
}


@pytest.fixture
def group() -> Iterator[list[RemoteProcess]]:
    """A learner without DeepSpeed, and three receivers."""
    with processes((PlainLearner, SHAPES), *[(Receiver,)] * 3) as made:
        wait_for([one.digests.remote() for one in made], 120, "the processes to start")
        yield made


def test_what_is_sent_arrives_bit_for_bit(group: list[RemoteProcess]) -> None:
    """Two and three processes; buckets smaller and larger than a block, and the whole in one."""
    learner, *others = group
    expected = get(learner.digests.remote())
    assert set(expected) == set(SHAPES)
    for receivers, sizes in ((others[:1], (1, 10 * MIB, 1 << 40)), (others[1:], (10 * MIB,))):
        link = link_to(receivers)
        for bucket_bytes in sizes:
            assert sorted(push(link, [learner], receivers, bucket_bytes)) == sorted(SHAPES)
            for receiver in receivers:
                assert get(receiver.digests.remote()) == expected
    blocks = get(others[0].blocks.remote())
    assert ["model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"] in blocks
    # vLLM keeps tensors of a layer until all of it has come: their memory must stay theirs.
    held = get(others[0].held_sum.remote())
    push(link_to(others[:1]), [learner], others[:1], 8 * MIB)
    assert get(others[0].held_sum.remote()) == pytest.approx(held * 4 / 3)


def test_a_push_that_somebody_misses_ends_at_its_deadline_and_names_it(group: list[RemoteProcess]) -> None:
    """Frozen before it joins, frozen before a push, dead; the one that is started in its place gets the next push."""
    learner, first, second, third = group
    both = [first, second]

    def named(link: WeightLink, receivers: list[RemoteProcess]) -> None:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"^generator 1 did not come .*deadline_s=4") as caught:
            push(link, [learner], receivers, 10 * MIB)
        assert time.monotonic() - started < 30 and "generator 0" not in str(caught.value)

    link = link_to(both, deadline_s=4.0)
    for _ in range(2):
        second.stop()
        named(link, both)
        second.go_on()
        get(second.digests.remote())  # it has given up what it was frozen in
        push(link, [learner], both, 10 * MIB)
    push(link, [learner], both, 10 * MIB)
    second.kill()
    named(link, [first])
    both[1] = third
    push(link, [learner], both, 10 * MIB)
    assert get(third.digests.remote()) == get(first.digests.remote()) == get(learner.digests.remote())


def test_a_sparse_push_leaves_what_a_whole_one_would() -> None:
    """In bfloat16 to two receivers; one of them dies, another comes in its place, and one loses a bit."""
    with processes((PlainLearner, SHAPES, 0, "bfloat16"), *[(Receiver,)] * 3) as (learner, first, second, third):
        both = [first, second]
        link = link_to(both, deadline_s=60.0, sparse=True)
        whole = sum(tensor.nbytes for tensor in get(learner.tensors.remote()))

        def pushed(share: float, seed: int) -> Pushed:
            get(learner.change.remote(share, seed))
            assert sorted(push(link, [learner], both, 8 * MIB)) == sorted(SHAPES)
            expected = get(learner.digests.remote())
            for receiver in both:
                assert get(receiver.digests.remote()) == expected
            found: Pushed = get(learner.take_pushed.remote())
            assert found.elements == whole // 2
            return found

        assert pushed(0.0, 0).nbytes > whole
        for seed, share in enumerate((0.01, 0.1, 0.0)):
            found = pushed(share, seed)
            assert found.changed == pytest.approx(share * whole / 2, rel=0.02)
            # Of a changed element 4 bytes where the whole tensor has 2; the header beside them.
            assert found.nbytes < 2 * share * whole + 20_000
        assert pushed(0.6, 4).nbytes == pytest.approx(whole, rel=0.01)
        second.kill()
        both[1] = third
        assert pushed(0.01, 5).nbytes > whole
        assert pushed(0.01, 6).nbytes < 0.03 * whole
        get(first.spoil.remote("model.norm.weight"))
        with pytest.raises(WeightsDiffer, match=r"^model\.norm\.weight has another hash"):
            push(link, [learner], both, 8 * MIB)
        get(learner.take_pushed.remote())
        assert pushed(0.01, 7).nbytes > whole


def test_a_sparse_push_from_the_shards_of_zero_3(tied_policy: str) -> None:
    """Two ranks in bfloat16, at a learning rate that changes few elements, with tied embeddings."""
    port = free_port()
    more = {"dtype": "bfloat16", "learning_rate": 1e-5}
    with processes(*[(Learner, tied_policy, rank, 2, 3, port, more) for rank in range(2)], (Receiver,)) as made:
        *learners, receiver = made
        link = link_to([receiver], deadline_s=120.0, sparse=True)
        shares = []
        for seed in range(3):
            names = push(link, learners, [receiver], 1 << 14)
            assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(names) and len(names) == len(set(names))
            sent = wait_for([one.digests.remote() for one in learners], 120, "digests")
            assert get(receiver.digests.remote()) == sent[0] == sent[1]
            pushed = get(learners[0].take_pushed.remote())
            shares.append(pushed.changed / pushed.elements)
            assert get(learners[1].take_pushed.remote()) == Pushed()
            wait_for([one.step.remote(seed, 2) for one in learners], 120, "a step")
        assert shares[0] == 1.0 and all(0 < share < 0.3 for share in shares[1:]), shares


@pytest.fixture(scope="module")
def large_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 MiB, its largest tensor 3 MiB."""
    shape = NewPolicyConfig(
        hidden_size=384, layers=12, heads=4, key_value_heads=4, intermediate_size=1536, tie_embeddings=False
    )
    folder = tmp_path_factory.mktemp("large") / "policy"
    make_policy(shape, [], folder, 3)
    return str(folder)


# Both stages, both kinds of policy. The sparse push has ZeRO-3 with tied embeddings.
@pytest.mark.parametrize(("zero_stage", "tied"), [(1, True), (3, False)])
def test_zero_stages_and_tied_embeddings(zero_stage: int, tied: bool, tied_policy: str, untied_policy: str) -> None:
    """Two learner ranks and a receiver, before and after a step."""
    port = free_port()
    path = tied_policy if tied else untied_policy
    ranks = [(Learner, path, rank, 2, zero_stage, port) for rank in range(2)]
    with processes(*ranks, (Receiver,)) as (*learners, receiver):
        link = link_to([receiver], deadline_s=120.0)
        before = None
        for seed in range(2):
            names = push(link, learners, [receiver], 1 << 15)
            assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(names) and len(names) == len(set(names))
            sent = wait_for([one.digests.remote() for one in learners], 120, "digests")
            assert get(receiver.digests.remote()) == sent[0] == sent[1]
            assert sent[0] != before
            before = sent[0]
            wait_for([one.step.remote(seed, 2) for one in learners], 120, "a step")


def test_memory_of_a_push_is_bounded_by_the_bucket(large_policy: str) -> None:
    """ZeRO-3 on two ranks: what a push adds to a rank's memory, over gloo and as files."""
    port = free_port()
    bucket = 16 * MIB
    with processes(*[(Learner, large_policy, rank, 2, 3, port) for rank in range(2)], (Receiver,)) as made:
        *learners, receiver = made
        link = link_to([receiver], deadline_s=120.0)
        push(link, learners, [receiver], bucket)  # connections and first allocations
        whole = sum(tensor.nbytes for tensor in get(learners[0].tensors.remote()))
        assert whole > 5 * bucket
        # What a library or the allocator does beside a push adds to one round's peak, on a busy machine above all.
        rounds = []
        for _ in range(3):
            begin = wait_for([one.reset_peak.remote() for one in learners], 60, "memory")
            push(link, learners, [receiver], bucket)
            peaks = wait_for([one.peak.remote() for one in learners], 60, "memory")
            rounds.append([peak - start for peak, start in zip(peaks, begin, strict=True)])
        over_gloo = [min(of_rank) for of_rank in zip(*rounds, strict=True)]
        exports = [wait_for([one.export.remote(bucket) for one in learners], 240, "exporting") for _ in range(3)]
        as_files = [min(peak for peak, _ in of_rank) for of_rank in zip(*exports, strict=True)]
        print(f"gloo {[one / MIB for one in over_gloo]} MiB, files {[one / MIB for one in as_files]} MiB")
        assert max(over_gloo) < bucket
        # A file is made in a bucket's memory, beside what is gathered.
        assert as_files[0] < 1.75 * bucket and as_files[1] < bucket
        files = exports[-1]
        assert files[0][1] == get(receiver.digests.remote()) and not files[1][1]
