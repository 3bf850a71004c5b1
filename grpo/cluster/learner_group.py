"""All learner ranks behind one interface.

The rest of the project uses only `LearnerGroup` and `GeneratorGroup`. It does not use Ray directly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray import ObjectRef

from grpo.cluster import activity
from grpo.cluster.ready import next_of, ready_of
from grpo.cluster.waiting import RemoteActor, wait_for
from grpo.types import ActorId, ActorKind, Phase
from rewards.pool.busy_clock import Busy, BusyClock

if TYPE_CHECKING:
    from torch import Tensor

    from grpo.algorithm.minibatches import TrainBatch
    from grpo.algorithm.rescoring import ScoringBatch, Source
    from grpo.cluster.generator_group import GeneratorGroup
    from grpo.learner.rank import LearnerRank
    from grpo.report.profiling import ActorProfile
    from grpo.weights.buckets import TensorInfo
    from grpo.weights.link import Holders, Receiver, Remote, WeightLink
    from grpo.weights.patches import Pushed
    from grpo.weights.sender import GroupTransport

Result = TypeVar("Result")


class LearnerGroup:
    """All learner ranks behind one interface."""

    def __init__(
        self, actors: Sequence[Any], deadline_s: float, sequence_parallel: int = 1, *, together: bool = True
    ) -> None:
        """Use actors that have started.

        Args:
            actors: Ray's handles of the ranks (`LearnerActor`).
            deadline_s: longest wait for a call.
            sequence_parallel: number of neighbouring ranks that share each microbatch and return equal results.
            together: whether a rank needs the other ranks to compute log-probabilities.
        """
        self._ranks: list[RemoteActor[LearnerRank]] = [RemoteActor(actor) for actor in actors]
        self._deadline_s = deadline_s
        self._sequence_parallel = sequence_parallel
        # If one rank is enough to score, the last rank scores, because the first rank sends the weights.
        self._scorers = self._ranks if together else self._ranks[-1:]
        self._meanwhile: Callable[[], None] | None = None
        self._busy = [BusyClock() for _ in self._ranks]
        self.link: WeightLink | None = None
        """Sends weights without Ray's object store; None if the weights go through the store."""
        self.holders: Holders | None = None
        """The generators that received the last push, if sparse pushes use Ray's object store; otherwise None."""

    def meanwhile(self, work: Callable[[], None]) -> None:
        """Repeat `work` while the group waits for optimizer steps, log-probabilities or checkpoints."""
        self._meanwhile = work

    @property
    def scores_aside(self) -> bool:
        """Whether the scoring rank differs from the rank that sends the weights."""
        return self._ranks[0] not in self._scorers

    @property
    def ranks(self) -> int:
        """Number of data-parallel ranks; ranks that share their microbatches count as one rank."""
        return len(self._ranks) // self._sequence_parallel

    def connect(
        self,
        generators: GeneratorGroup,
        transport: GroupTransport,
        workers_each: int,
        deadline_s: float,
        *,
        sparse: bool = False,
    ) -> None:
        """From now on, send weights to these generators without Ray's object store (`grpo.weights.link`)."""
        from grpo.weights.link import WeightLink

        self.link = WeightLink(
            transport,
            lambda: generators.actors,
            workers_each,
            deadline_s,
            wait_for,
            sparse=sparse,
            lost=generators.lost_in_push,
        )

    def push_changes(self, generators: GeneratorGroup) -> None:
        """From now on, put only changed values into Ray's object store, if all these generators have the last push."""
        from grpo.weights.link import Holders

        self.holders = Holders(lambda: generators.actors)

    def pushing_to(self, receivers: Sequence[Remote[Receiver]]) -> AbstractContextManager[object]:
        """Send weights to these generators only, inside the context."""
        if self.link:
            return self.link.only(receivers)
        return self.holders.targets.only(receivers) if self.holders else contextlib.nullcontext()

    def take_pushed(self) -> Pushed:
        """Return the totals of sparse pushes since the last call."""
        return self._first(lambda rank: rank.outlet.take_pushed(), "the size of the push")

    def steps(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        """Do an optimizer step on all ranks for each batch, in order; return the global metrics of each step.

        The ranks begin with the first batch while the caller makes the next batches.
        """
        started = []
        for batch in batches:
            shares = zip(self._ranks, self._shares_of(batch.ranks), strict=True)
            steps = [actor.start(lambda rank, share: rank.step(share), Phase.LEARN, share) for actor, share in shares]
            started.append((steps, self._ask_busy()))
        updates = []
        for steps, busy in started:
            updates.append(self._wait(steps, "a learner step")[0])
            self._hear_busy(busy)
        return updates

    def _shares_of(self, parts: Sequence[object]) -> list[Any]:
        """Return each rank's part of a batch; ranks that share a part share one stored copy."""
        if self._sequence_parallel == 1:
            return list(parts)
        references = [ray.put(part) for part in parts]
        return [reference for reference in references for _ in range(self._sequence_parallel)]

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Do one optimizer step on all ranks; return the global metrics."""
        return self.steps([batch])[0]

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[float]]]:
        """Start scoring tokens under the learner's policy; call the returned function to wait for the scores."""
        scoring = [actor.start(lambda rank: rank.score(sequences), Phase.SCORE) for actor in self._scorers]
        return lambda: wait_for(scoring, self._deadline_s, "scoring the probe in the learner")[0]

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[Tensor]]:
        """Return log-probabilities of a batch under the model `source`: a [T] tensor at [rank][microbatch]."""
        shares = zip(self._ranks, self._shares_of(batch.ranks), strict=True)
        scoring = [
            actor.start(lambda rank, share: rank.logprobs(share, source), Phase.SCORE, share) for actor, share in shares
        ]
        scored = self._wait(scoring, f"scoring completions under the {source}")
        return scored[:: self._sequence_parallel]

    def refresh_reference(self) -> None:
        """Copy the current policy into the reference."""
        self._all(lambda rank: rank.refresh_reference(), Phase.LEARN, "refreshing the reference")

    def tensor_names(self) -> list[str]:
        """Return the names of the policy's tensors."""
        return [name for tensor in self.tensors() for name in tensor.names]

    def tensors(self) -> list[TensorInfo]:
        """Return the policy's tensors, without their values."""
        return self._first(lambda rank: rank.outlet.tensors(), "the tensors' names")

    def export_buckets(self, bucket_bytes: int) -> Iterator[Any]:
        """Yield the policy's weights in buckets; take a bucket only when the bucket before the previous one is loaded.

        A bucket is a reference to arrays. If `link` is set, a bucket is only a description; `link` sends the values.
        """
        if self.link is not None:
            yield from self.link.buckets(self._ranks, self.tensors(), bucket_bytes)
        elif self.holders is not None:
            with self.holders.push() as whole:
                yield from self._streamed(lambda rank: rank.outlet.changes(bucket_bytes, whole=whole))
        else:
            yield from self._streamed(lambda rank: rank.outlet.files(bucket_bytes))

    def _streamed(self, verb: Callable[[LearnerRank], Iterator[object]]) -> Iterator[Any]:
        streams = [actor.stream(verb, Phase.SYNC) for actor in self._ranks]
        while self._bucket_is_there(streams[0]):
            try:
                yield next_of(streams[0])
            except StopIteration:
                break
        else:
            raise TimeoutError(f"no bucket of weights was gathered from the learner within {self._deadline_s:.0f} s")
        wait_for([s.completed() for s in streams], self._deadline_s, "gathering the weights from the learner")

    def _bucket_is_there(self, stream: Any) -> bool:
        what = "a bucket of weights from the learner"
        with activity.current().waiting(what, [stream]):
            return bool(ready_of([stream], self._deadline_s, fetch=False)[0])

    def sleep(self) -> None:
        """Move optimizer states off the devices."""
        self._all(lambda rank: rank.sleep(), Phase.SWAP, "moving states off the devices")

    def wake(self) -> None:
        """Move optimizer states back to the devices."""
        self._all(lambda rank: rank.wake(), Phase.SWAP, "moving states to the devices")

    def save(self, folder: str) -> None:
        """Write training state and policy into `folder`, which every rank must be able to reach."""
        saving = [actor.start(lambda rank: rank.save(folder), Phase.CHECKPOINT) for actor in self._ranks]
        busy = self._ask_busy()
        self._wait(saving, "saving a checkpoint")
        self._hear_busy(busy)

    def load(self, folder: str) -> None:
        """Load a checkpoint that `save` wrote."""
        self._all(lambda rank: rank.load(folder), None, "loading a checkpoint")

    def export(self, folder: str) -> None:
        """Write the policy alone, in Hugging Face format."""
        self._all(lambda rank: rank.export(folder), Phase.CHECKPOINT, "exporting the policy")

    def take_busy(self) -> dict[ActorId, Busy]:
        """Return each rank's reported activities since the last call, with times of the rank's clock."""
        return {ActorId(ActorKind.LEARNER, rank): clock.take() for rank, clock in enumerate(self._busy)}

    def start_profile(self) -> None:
        """Start to profile the ranks."""
        starting = [actor.handle.start_profile.remote() for actor in self._ranks]
        wait_for(starting, self._deadline_s, "starting the profile")

    def stop_profile(self, folder: str) -> list[ActorProfile]:
        """Stop profiling and return each rank's profile; write traces into `folder`."""
        ending = [actor.handle.stop_profile.remote(folder) for actor in self._ranks]
        return wait_for(ending, self._deadline_s, "writing the learner's profile")

    def _all(self, verb: Callable[[LearnerRank], Result], doing: Phase | None, what: str) -> list[Result]:
        """Return the results of `verb` on all ranks; `what` names the expected result in errors."""
        return wait_for([actor.start(verb, doing) for actor in self._ranks], self._deadline_s, what)

    def _first(self, verb: Callable[[LearnerRank], Result], what: str) -> Result:
        return wait_for([self._ranks[0].start(verb, None)], self._deadline_s, what)[0]

    def _wait(self, references: Sequence[ObjectRef[Result]], what: str) -> list[Result]:
        return wait_for(references, self._deadline_s, what, self._meanwhile)

    def _ask_busy(self) -> list[ObjectRef[Busy]]:
        # An actor runs its calls in order, so it answers this call after all earlier calls.
        return [actor.handle.take_busy.remote() for actor in self._ranks]

    def _hear_busy(self, references: Sequence[ObjectRef[Busy]]) -> None:
        answers = wait_for(references, self._deadline_s, "the learner ranks' activities")
        for clock, busy in zip(self._busy, answers, strict=True):
            clock.merge(busy)
