"""All learner ranks, called as one. Part of the Ray room.

Every wait has a deadline and says what it waits for. The rest of the project knows `LearnerGroup` and
`GeneratorGroup` only, and nothing of Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import ray

from grpo.cluster import activity
from grpo.cluster.waiting import wait_for
from rewards.pool.busy_clock import Busy, BusyClock

if TYPE_CHECKING:
    from torch import Tensor

    from grpo.algorithm.minibatches import TrainBatch
    from grpo.algorithm.rescoring import ScoringBatch, Source
    from grpo.cluster.generator_group import GeneratorGroup
    from grpo.report.profiling import ActorProfile
    from grpo.weights.buckets import TensorInfo
    from grpo.weights.link import Holders, WeightLink
    from grpo.weights.patches import Pushed
    from grpo.weights.sender import GroupTransport


class LearnerGroup:
    """All learner ranks, called alike."""

    def __init__(
        self, actors: Sequence[Any], deadline_s: float, sequence_parallel: int = 1, *, together: bool = True
    ) -> None:
        """Use actors that have started.

        Args:
            actors: the ranks.
            deadline_s: longest wait for a call.
            sequence_parallel: neighbouring ranks that share each microbatch, and answer alike.
            together: whether a rank needs the others to compute what the policy makes of tokens.
        """
        self._actors = list(actors)
        self._deadline_s = deadline_s
        self._sequence_parallel = sequence_parallel
        # Where one is enough it is not the one that hands the weights over.
        self._scorers = self._actors if together else self._actors[-1:]
        self._meanwhile: Callable[[], None] | None = None
        self._busy = [BusyClock() for _ in self._actors]
        self.link: WeightLink | None = None
        """Carries weights past Ray's object store; None where they go through it."""
        self.holders: Holders | None = None
        """Who has what was pushed last through Ray's object store; None where pushes are not sparse."""

    def meanwhile(self, work: Callable[[], None]) -> None:
        """Do this again and again while optimizer steps, log-probabilities and checkpoints are waited for."""
        self._meanwhile = work

    @property
    def scores_aside(self) -> bool:
        """Whether the rank that scores is another than the one that hands the weights over."""
        return self._actors[0] not in self._scorers

    @property
    def ranks(self) -> int:
        """Data-parallel ranks; those that share their microbatches count as one."""
        return len(self._actors) // self._sequence_parallel

    def connect(
        self,
        generators: GeneratorGroup,
        transport: GroupTransport,
        workers_each: int,
        deadline_s: float,
        *,
        sparse: bool = False,
    ) -> None:
        """Carry weights to these generators past Ray's object store from now on (`grpo.weights.link`)."""
        from grpo.weights.link import WeightLink

        self.link = WeightLink(transport, lambda: generators.actors, workers_each, deadline_s, wait_for, sparse=sparse)

    def push_changes(self, generators: GeneratorGroup) -> None:
        """Put only what changed into Ray's object store from now on, where all these generators have the rest."""
        from grpo.weights.link import Holders

        self.holders = Holders(lambda: generators.actors)

    def pushing_to(self, receivers: Sequence[Any]) -> AbstractContextManager[object]:
        """Inside, weights go to these generators alone."""
        if self.link:
            return self.link.only(receivers)
        return self.holders.targets.only(receivers) if self.holders else contextlib.nullcontext()

    def take_pushed(self) -> Pushed:
        """What sparse pushes have carried since this was last asked."""
        asked = self._actors[0].take_pushed.remote()
        pushed: Pushed = wait_for([asked], self._deadline_s, "the size of the push")[0]
        return pushed

    def steps(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        """An optimizer step on all ranks for each batch, in order; the global metrics of each.

        The ranks begin with the first batch while those after it are made.
        """
        started = []
        for batch in batches:
            asked = zip(self._actors, self._shares_of(batch.ranks), strict=True)
            started.append([actor.step.remote(share) for actor, share in asked])
        updates = []
        for step in started:
            answers = self._wait(step, "a learner step")
            self._heard(busy for _, busy in answers)
            updates.append(dict(answers[0][0]))
        return updates

    def _shares_of(self, parts: Sequence[object]) -> list[Any]:
        """Each rank's part: none is given what it does not compute, and those that share one are given it once."""
        if self._sequence_parallel == 1:
            return list(parts)
        references = [ray.put(part) for part in parts]
        return [reference for reference in references for _ in range(self._sequence_parallel)]

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on all ranks; the global metrics."""
        return self.steps([batch])[0]

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[float]]]:
        """Start scoring tokens under the learner's policy; call the result to wait for it."""
        references = [actor.score.remote(sequences) for actor in self._scorers]
        return lambda: list(wait_for(references, self._deadline_s, "scoring the probe in the learner")[0])

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[Tensor]]:
        """Log-probabilities of a batch's tokens under the policy or the reference: [rank][microbatch] -> [T]."""
        asked = zip(self._actors, self._shares_of(batch.ranks), strict=True)
        references = [actor.logprobs.remote(share, source) for actor, share in asked]
        scored = self._wait(references, f"scoring completions under the {source}")
        return scored[:: self._sequence_parallel]

    def refresh_reference(self) -> None:
        """Make the reference the policy as it is now."""
        references = [actor.refresh_reference.remote() for actor in self._actors]
        wait_for(references, self._deadline_s, "refreshing the reference")

    def tensor_names(self) -> list[str]:
        """Every name under which the policy has a tensor."""
        return [tensor.name for tensor in self.tensors()]

    def tensors(self) -> list[TensorInfo]:
        """Every tensor of the policy, without its values."""
        return list(wait_for([self._actors[0].tensors.remote()], self._deadline_s, "the tensors' names")[0])

    def export_buckets(self, bucket_bytes: int) -> Iterator[Any]:
        """The policy's weights in buckets; ask for one only when the one before the last is loaded.

        They are references to arrays, or where `link` is set, what is told of a bucket that it brings by itself.
        """
        if self.link is not None:
            yield from self.link.buckets(self._actors, self.tensors(), bucket_bytes)
        elif self.holders is not None:
            with self.holders.push() as whole:
                yield from self._streamed("export_changes", bucket_bytes, whole)
        else:
            yield from self._streamed("export_buckets", bucket_bytes)

    def _streamed(self, method: Literal["export_buckets", "export_changes"], *arguments: object) -> Iterator[Any]:
        # Two buckets wait at most: a large policy must not fill the object store while generators still load.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
        streams: list[Any] = [getattr(actor, method).options(**options).remote(*arguments) for actor in self._actors]
        while self._bucket_is_there(streams[0]):
            try:
                yield next(streams[0])
            except StopIteration:
                break
        else:
            raise TimeoutError(f"no bucket of weights was gathered from the learner within {self._deadline_s:.0f} s")
        wait_for([s.completed() for s in streams], self._deadline_s, "gathering the weights from the learner")

    def _bucket_is_there(self, stream: Any) -> bool:
        what = "a bucket of weights from the learner"
        with activity.current().waiting(what, [stream]):
            return bool(ray.wait([stream], timeout=self._deadline_s, fetch_local=False)[0])

    def sleep(self) -> None:
        """Move optimizer states off the devices."""
        wait_for([actor.sleep.remote() for actor in self._actors], self._deadline_s, "moving states off the devices")

    def wake(self) -> None:
        """Move them back."""
        wait_for([actor.wake.remote() for actor in self._actors], self._deadline_s, "moving states to the devices")

    def save(self, folder: str) -> None:
        """Write training state and policy into `folder`, which every rank must be able to reach."""
        self._heard(self._wait([actor.save.remote(folder) for actor in self._actors], "saving a checkpoint"))

    def load(self, folder: str) -> None:
        """Go on from what `save` wrote."""
        wait_for([actor.load.remote(folder) for actor in self._actors], self._deadline_s, "loading a checkpoint")

    def export(self, folder: str) -> None:
        """Write the policy alone, in Hugging Face format."""
        wait_for([actor.export.remote(folder) for actor in self._actors], self._deadline_s, "exporting the policy")

    def take_busy(self) -> dict[str, Busy]:
        """What each rank has told since this was last asked of what it did, and when, by its own clock."""
        return {f"learner rank {rank}": clock.take() for rank, clock in enumerate(self._busy)}

    def _heard(self, told: Iterable[Busy]) -> None:
        for clock, busy in zip(self._busy, told, strict=True):
            clock.merge(busy)

    def start_profile(self) -> None:
        """Watch what the ranks compute from now on."""
        wait_for([actor.start_profile.remote() for actor in self._actors], self._deadline_s, "starting the profile")

    def stop_profile(self, folder: str) -> list[ActorProfile]:
        """What each has computed since; traces are written into `folder`."""
        ending = [actor.stop_profile.remote(folder) for actor in self._actors]
        return wait_for(ending, self._deadline_s, "writing the learner's profile")

    def _wait(self, references: Sequence[Any], what: str) -> list[Any]:
        return wait_for(references, self._deadline_s, what, self._meanwhile)
