"""The driver's end of a push: who is brought together, and what each is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from grpo.types import Phase
from grpo.weights.buckets import Bucket, TensorInfo
from grpo.weights.link import GRACE_S, WeightLink
from grpo.weights.sender import GroupTransport

TENSORS = [TensorInfo(f"model.layers.{layer}.mlp.up.weight", "float32", (256,)) for layer in range(4)]


@dataclass(eq=False)
class Actor:
    """Keeps what it was told; answers at once."""

    name: str
    told: list[Any] = field(default_factory=list)
    fails: Exception | None = None

    def start(self, verb: Callable[..., Any], doing: Phase | None, *arguments: Any) -> Any:
        return verb(self, *arguments)

    @property
    def outlet(self) -> Actor:
        return self

    def open(self, *meeting: Any) -> tuple[str, int]:
        self.told.append(("open", *meeting))
        return ("10.0.0.1", 4242)

    def join(self) -> None:
        self.told.append(("join",))

    def send(self, bucket: Bucket) -> Any:
        self.told.append(("send", bucket))
        return self.fails or (self.name, (bucket.number, b"handle"))

    def join_sender(self, invitation: dict[str, Any]) -> None:
        self.told.append(("join_sender", invitation))


def wait_for(
    references: Sequence[Any], deadline_s: float, what: str, meanwhile: Callable[[], None] | None = None
) -> list[Any]:
    assert deadline_s == 5.0 + GRACE_S
    for one in references:
        if isinstance(one, Exception):
            raise one
    return list(references)


def link_of(generators: list[Actor], transport: GroupTransport = "gloo", workers: int = 1) -> WeightLink:
    return WeightLink(transport, lambda: generators, workers, 5.0, wait_for)


def invitations(actor: Actor) -> list[dict[str, Any]]:
    return [told[1] for told in actor.told if told[0] == "join_sender"]


def test_all_are_invited_once_and_every_rank_sends_every_bucket() -> None:
    ranks, generators = [Actor("rank 0"), Actor("rank 1")], [Actor("a"), Actor("b")]
    link = link_of(generators, workers=2)
    first = list(link.buckets(ranks, TENSORS, 2048))
    second = list(link.buckets(ranks, TENSORS, 1024))
    assert [tensor for bucket in first for tensor in bucket.tensors] == TENSORS
    assert [bucket.number for bucket in first + second] == list(range(6)), "a number is never used again"
    for rank in ranks:
        assert [told[1] for told in rank.told if told[0] == "send"] == first + second
    members = ["the learner"] + [f"generator {i} (worker {j})" for i in range(2) for j in range(2)]
    for place, generator in enumerate(generators):
        (told,) = invitations(generator)
        assert told == {
            "address": "10.0.0.1",
            "port": 4242,
            "members": members,
            "deadline_s": 5.0,
            "first_rank": 1 + 2 * place,
        }


def test_another_process_is_brought_together_with_the_others() -> None:
    rank, generators = Actor("rank"), [Actor("a"), Actor("b")]
    link = link_of(generators)
    list(link.buckets([rank], TENSORS, 4096))
    generators[1] = Actor("b again")
    list(link.buckets([rank], TENSORS, 4096))
    assert [len(invitations(one)) for one in generators] == [2, 1]


def test_one_alone_is_pushed_to_under_its_own_name_and_then_all_again() -> None:
    rank, generators = Actor("rank"), [Actor("a"), Actor("b")]
    link = link_of(generators)
    list(link.buckets([rank], TENSORS, 4096))
    with link.only(generators[1:]):
        list(link.buckets([rank], TENSORS, 4096))
    list(link.buckets([rank], TENSORS, 4096))
    assert [len(invitations(one)) for one in generators] == [2, 3]
    alone = invitations(generators[1])[1]
    assert alone["members"] == ["the learner", "generator 1"] and alone["first_rank"] == 1


def test_connections_of_a_push_that_failed_are_not_used_again() -> None:
    rank, generator = Actor("rank"), Actor("a")
    link = link_of([generator])
    rank.fails = TimeoutError("generator 0 did not come")
    with pytest.raises(TimeoutError, match="generator 0"):
        list(link.buckets([rank], TENSORS, 4096))
    rank.fails = None
    list(link.buckets([rank], TENSORS, 4096))
    assert len(invitations(generator)) == 2


def test_with_ipc_a_bucket_is_told_of_when_it_lies_ready_and_where() -> None:
    ranks = [Actor("GPU-0"), Actor("GPU-1")]
    link = link_of([Actor("a"), Actor("b")], "ipc")
    found: list[Bucket] = []
    for bucket in link.buckets(ranks, TENSORS, 2048):
        assert ranks[1].told[-1][0] == "send"
        found.append(bucket)
    assert [bucket.handles for bucket in found] == [
        (("GPU-0", (number, b"handle")), ("GPU-1", (number, b"handle"))) for number in range(2)
    ]
