"""A push is proven: what did not arrive is found and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from grpo.weights.sync import Scores, WeightMismatch, WeightSync

Tensors = dict[str, float]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS: Tensors = {
    EMBEDDING: 1.0,
    "model.layers.0.self_attn.q_proj.weight": 2.0,
    "model.layers.0.self_attn.k_proj.weight": 3.0,
    "model.layers.0.mlp.up_proj.weight": 5.0,
    HEAD: 7.0,
}
PROBE = [[1, 2, 3], [4, 5]]


def scores_of(weights: Tensors, sequences: Sequence[Sequence[int]], factor: float = 1.0) -> Scores:
    """Log-probabilities of a model in which every tensor counts."""
    level = factor * sum((index + 1) * value for index, value in enumerate(weights.values()))
    return [[-0.01 * level - 0.001 * token for token in ids[1:]] for ids in sequences]


@dataclass
class Source:
    """A learner; `unsent` tensors are known but left out of a push. `asked` is what it was asked, in order."""

    weights: Tensors
    unsent: frozenset[str] = frozenset()
    scores_aside: bool = False
    asked: list[str] = field(default_factory=list)

    def export_buckets(self, bucket_bytes: int) -> Iterator[Tensors]:
        self.asked.append("export")
        sent = {name: value for name, value in self.weights.items() if name not in self.unsent}
        if bucket_bytes > 1:
            yield sent
            return
        for block in dict.fromkeys(name.rsplit(".", 2)[0] for name in sent):
            yield {name: value for name, value in sent.items() if name.rsplit(".", 2)[0] == block}

    def tensor_names(self) -> list[str]:
        return list(self.weights)

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], Scores]:
        self.asked.append("score")
        return lambda: scores_of(self.weights, sequences)


@dataclass
class Replica:
    """A generator that loses the first copy of some tensors, or computes wrongly."""

    loses: set[str] = field(default_factory=set)
    factor: float = 1.0
    weights: Tensors = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0.0))

    def load(self, bucket: Tensors) -> None:
        for name, value in bucket.items():
            if name in self.loses:
                self.loses.remove(name)
            else:
                self.weights[name] = value


@dataclass
class Targets:
    replicas: list[Replica]
    versions: list[int] = field(default_factory=list)

    def load_weights(self, buckets: Iterable[Tensors], policy_version: int) -> list[str]:
        names: list[str] = []
        for bucket in buckets:
            names += bucket
            for replica in self.replicas:
                replica.load(bucket)
        self.versions.append(policy_version)
        return names

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[Scores]]:
        return lambda: [scores_of(replica.weights, sequences, replica.factor) for replica in self.replicas]


def push(replicas: list[Replica], source: Source | None = None, tolerance: float = 1e-4) -> float:
    sync = WeightSync(source or Source(dict(WEIGHTS)), Targets(replicas), 1 << 20, tolerance)
    return sync.push(4, PROBE)


def mismatch(replicas: list[Replica], source: Source | None = None) -> str:
    with pytest.raises(WeightMismatch) as caught:
        push(replicas, source)
    return str(caught.value)


def test_what_agrees_passes_and_is_stamped() -> None:
    targets = Targets([Replica(), Replica()])
    assert WeightSync(Source(dict(WEIGHTS)), targets, 1 << 20, 1e-4).push(4, PROBE) == 0.0
    assert targets.versions == [4]
    assert all(replica.weights == WEIGHTS for replica in targets.replicas)


@pytest.mark.parametrize(("scores_aside", "order"), [(True, ["score", "export"]), (False, ["export", "score"])])
def test_a_learner_that_can_scores_beside_its_export(scores_aside: bool, order: list[str]) -> None:
    source = Source(dict(WEIGHTS), scores_aside=scores_aside)
    assert push([Replica()], source) == 0.0
    assert source.asked == order


def test_the_largest_mean_difference_is_told() -> None:
    # The level is 69, so a factor of 1.0001 is 0.01 * 0.0069 off at each token.
    assert push([Replica(), Replica(factor=1.0001)]) == pytest.approx(6.9e-5)


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_a_difference_in_either_direction_fails(factor: float) -> None:
    assert "generator 1 by 0.00069" in mismatch([Replica(), Replica(factor=factor)])


def test_differences_do_not_cancel_out() -> None:
    class Swinging(Targets):
        def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[Scores]]:
            (exact,) = super().score(sequences)()
            signs = iter([1, -1] * 9)
            return lambda: [[[value + next(signs) for value in row] for row in exact]]

    with pytest.raises(WeightMismatch):
        WeightSync(Source(dict(WEIGHTS)), Swinging([Replica()]), 1 << 20, 1e-4).push(4, PROBE)


@pytest.mark.parametrize("stale", [name for name in WEIGHTS if "self_attn" not in name])
def test_a_stale_tensor_is_named(stale: str) -> None:
    told = mismatch([Replica(), Replica(loses={stale})])
    assert "policy version 4" in told and "generator 1 by" in told and "generator 0" not in told
    assert told.endswith(f"These tensors were not in place after the push: {stale}")


def test_tensors_of_one_block_are_named_together() -> None:
    told = mismatch([Replica(loses={"model.layers.0.self_attn.q_proj.weight"})])
    assert told.endswith(": model.layers.0.self_attn.q_proj.weight, model.layers.0.self_attn.k_proj.weight")


def test_every_stale_tensor_is_named() -> None:
    told = mismatch([Replica(loses={HEAD}), Replica(loses={EMBEDDING})])
    assert told.endswith(f": {EMBEDDING}, {HEAD}")


def test_a_tied_head_that_was_never_sent_is_named() -> None:
    told = mismatch([Replica()], Source(dict(WEIGHTS), unsent=frozenset({HEAD})))
    assert told.endswith(f"The push never sent {HEAD}")
    assert EMBEDDING not in told


def test_engines_that_differ_although_all_arrived() -> None:
    told = mismatch([Replica(factor=1.01)])
    assert "all tensors arrived: the engines compute differently" in told and "dtype" in told


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_a_number_fails_on_any_replica(place: int) -> None:
    replicas = [Replica(), Replica()]
    replicas[place].factor = math.nan
    assert f"generator {place} by nan" in mismatch(replicas)


def test_a_stale_tensor_that_is_not_a_number_is_named() -> None:
    replica = Replica(loses={HEAD}, weights=dict.fromkeys(WEIGHTS, math.nan))
    assert mismatch([Replica(), replica]).endswith(f"after the push: {HEAD}")


def test_a_learner_that_has_diverged_is_told_apart() -> None:
    told = mismatch([Replica()], Source(WEIGHTS | {HEAD: math.nan}))
    assert "the training has diverged" in told and "learning_rate" in told


@pytest.mark.parametrize("probe", [[], [[1]], [[1], [2]]])
def test_a_probe_that_proves_nothing_is_refused(probe: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="two or more tokens, got none"):
        WeightSync(Source(dict(WEIGHTS)), Targets([Replica()]), 1 << 20, 1e-4).push(4, probe)
