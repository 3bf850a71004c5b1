"""Sparse pushes without transports: what arrives, what it weighs, and what happens when the ends disagree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from grpo.weights import patches as weight_patches
from grpo.weights.buckets import Bucket, cut
from grpo.weights.link import Holders
from grpo.weights.patches import SPAN, Patch, PatchReader, PatchWriter, WeightsDiffer, difference
from grpo.weights.source import PolicyWeights

HIDDEN = 32
# Larger than what is compared at a time; its last span is not whole.
VOCABULARY = weight_patches._SLAB // HIDDEN + 5 * SPAN // HIDDEN + 7


class Policy(nn.Module):
    """An embedding tied to the head, tensors that are changed in different ways, one element, and none."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def linear(*shape: int) -> nn.Module:
            module = nn.Module()
            module.weight = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
            return module

        self.embed_tokens = linear(VOCABULARY, HIDDEN)
        self.unchanged = linear(300, HIDDEN)
        self.changed = linear(300, HIDDEN)
        self.special = linear(300, HIDDEN)
        self.single = linear(1)
        self.empty = linear(0)
        self.lm_head = self.embed_tokens


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return Policy(request.param)


def writer_of(policy: Policy) -> PatchWriter:
    return PatchWriter(PolicyWeights(policy, policy.single.weight.dtype), wanted=True)


def buckets_of(policy: Policy, bucket_bytes: int = 1 << 20) -> list[Bucket]:
    return cut(PolicyWeights(policy, policy.single.weight.dtype).infos(), bucket_bytes)


def push(writer: PatchWriter, policy: Policy, *readers: PatchReader) -> list[dict[str, Tensor]]:
    """What each reader has after a push."""
    found: list[dict[str, Tensor]] = [{} for _ in readers]
    for bucket in buckets_of(policy):
        file = writer.file(bucket)
        assert file is not None
        for names, reader in zip(found, readers, strict=True):
            names.update((name, tensor) for info, tensor in reader.read(file) for name in info.names)
    return found


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@torch.no_grad()
def update(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy.changed.weight.copy_(torch.randn(policy.changed.weight.shape, generator=generator) + 10 * seed)
    flat = policy.embed_tokens.weight.view(-1)
    where = torch.randint(len(flat), (len(flat) // 60,), generator=generator)
    flat[where] += 1.0
    flat[0] += 1.0
    flat[-1] += 1.0
    policy.single.weight += 1.0
    special = policy.special.weight.view(-1)
    special[:4] = torch.tensor([float("nan"), float("inf"), -0.0 if seed % 2 else 0.0, -float("inf")])
    # NaNs that differ in their payload, and numbers in their sign: equal to no comparison of numbers, or to all.
    bits(special)[10:12] = torch.tensor([0x7FC0 + seed, -1 - seed], dtype=bits(special).dtype)
    if special.element_size() == 4:
        bits(special)[12] = 0x7FC00000 + seed
    special[20] = 0.0 if seed % 2 else -0.0


def test_several_updates_arrive_bit_for_bit(policy: Policy) -> None:
    writer, readers = writer_of(policy), [PatchReader(), PatchReader()]
    push(writer, policy, *readers)
    for seed in range(1, 5):
        update(policy, seed)
        writer.pushed.nbytes = 0
        for found in push(writer, policy, *readers):
            expected = dict(policy.named_parameters(remove_duplicate=False))
            assert set(found) == set(expected) and "lm_head.weight" in found
            for name, tensor in found.items():
                assert tensor.dtype == expected[name].dtype and tensor.shape == expected[name].shape
                assert torch.equal(bits(tensor), bits(expected[name])), name
        whole = sum(bucket.nbytes for bucket in buckets_of(policy))
        # Of the embedding every sixtieth element with 16 bits beside it; the others are small.
        assert 0 < writer.pushed.nbytes < 0.06 * whole


def test_what_it_weighs_and_counts() -> None:
    old = np.zeros(3 * SPAN + 5, dtype="<u2")
    new = old.copy()
    new[[0, SPAN - 1, SPAN, 3 * SPAN + 4]] = 7
    changed, patch = difference(old, new)
    assert changed == 4 and patch is not None
    assert patch.counts_S.tolist() == [2, 1, 0, 1] and patch.positions_N.tolist() == [0, SPAN - 1, 0, 4]
    patch.apply(old)
    assert np.array_equal(old, new)
    # 4 bytes an element where bfloat16 has 2: a half is no smaller than the whole.
    half = np.arange(1000, dtype="<u2")
    assert difference(half, np.where(half % 2, half, half + 1).astype("<u2"))[1] is None
    less = half.copy()
    less[::3] += 1
    assert difference(half, less)[1] is not None
    policy = Policy(torch.bfloat16)
    writer, reader = writer_of(policy), PatchReader()
    push(writer, policy, reader)
    elements = sum(one.numel() for one in policy.parameters())
    assert writer.pushed.changed == writer.pushed.elements == elements
    with torch.no_grad():
        policy.special.weight[3, :5] += 1.0
    writer.pushed = weight_patches.Pushed()
    push(writer, policy, reader)
    assert writer.pushed.changed == 5 and writer.pushed.elements == elements
    assert writer.pushed.nbytes < 4000 + 4 * 2 * VOCABULARY * HIDDEN / SPAN


def test_a_file_is_one_that_safetensors_reads() -> None:
    policy = Policy(torch.bfloat16)
    writer = writer_of(policy)
    push(writer, policy)
    with torch.no_grad():
        policy.single.weight += 1.0
        policy.special.weight[0, 0] += 1.0
    (bucket,) = buckets_of(policy, 1 << 40)
    file = writer.file(bucket)
    assert file is not None
    found = safetensors.torch.load(file.tobytes())
    assert found["special.weight:positions"].tolist() == [0] and "special.weight" not in found
    assert found["single.weight"].view(torch.bfloat16).tolist() == policy.single.weight.tolist()


def test_a_reader_that_missed_something_says_so_and_a_whole_push_mends_it() -> None:
    policy = Policy(torch.bfloat16)
    writer, first, second = writer_of(policy), PatchReader(), PatchReader()
    push(writer, policy, first)
    update(policy, 1)
    with pytest.raises(WeightsDiffer, match=r"^embed_tokens\.weight was sent as changes, but this generator has no"):
        push(writer, policy, second)
    writer.forget()
    push(writer, policy, first, second)
    update(policy, 2)
    push(writer, policy, first)
    update(policy, 1)
    with pytest.raises(WeightsDiffer, match="has another hash than the learner's tensor"):
        push(writer, policy, second)


@pytest.fixture
def loses_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A sender that leaves out one changed element of a tensor of several."""

    def lossy(old_E: np.ndarray, new_E: np.ndarray) -> tuple[int, Patch | None]:
        changed, patch = difference(old_E, new_E)
        if patch is None or len(patch.positions_N) < 2:
            return changed, patch
        counts_S = patch.counts_S.copy()
        counts_S[np.flatnonzero(counts_S)[-1]] -= 1
        return changed, Patch(counts_S, patch.positions_N[:-1], patch.values_N[:-1])

    monkeypatch.setattr(weight_patches, "difference", lossy)
    yield


def test_one_lost_element_is_noticed(loses_one: None) -> None:
    policy = Policy(torch.bfloat16)
    writer, reader = writer_of(policy), PatchReader()
    push(writer, policy, reader)
    with torch.no_grad():
        policy.special.weight[7, :3] += 1.0
    with pytest.raises(WeightsDiffer, match=r"^special\.weight has another hash"):
        push(writer, policy, reader)


@pytest.mark.parametrize(
    "patch",
    [
        Patch(np.array([1], "<u4"), np.array([9], "<u2"), np.array([1], "<u2")),
        Patch(np.array([2], "<u4"), np.array([1], "<u2"), np.array([1], "<u2")),
        Patch(np.array([1, 0], "<u4"), np.array([1], "<u2"), np.array([1], "<u2")),
        Patch(np.array([1], "<u4"), np.array([1], "<u2"), np.array([1, 2], "<u2")),
    ],
)
def test_a_patch_of_another_tensor_is_refused(patch: Patch) -> None:
    with pytest.raises(WeightsDiffer):
        patch.apply(np.zeros(9, "<u2"))


def test_a_push_is_whole_unless_the_same_generators_got_all_of_the_last() -> None:
    generators = ["a", "b"]
    holders = Holders(lambda: generators)

    def whole() -> bool:
        with holders.push() as found:
            return found

    assert [whole(), whole(), whole()] == [True, False, False]
    generators[1] = "c"  # b was started again
    with holders.targets.only(["c"]):
        assert whole()
    assert [whole(), whole()] == [True, False]
    with pytest.raises(RuntimeError), holders.push():
        raise RuntimeError("interrupted")
    assert [whole(), whole()] == [True, False]
