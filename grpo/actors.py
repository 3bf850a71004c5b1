"""The actors and how the driver calls them: one half of the Ray room; `grpo.cluster`, which places them, is the other.

Every wait has a deadline and says what it waits for. The rest of the project knows `LearnerGroup` and
`GeneratorGroup` only, and nothing of Ray.
"""

from __future__ import annotations

import collections
import gc
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray

from grpo.activity import ACTIVITY
from grpo.batching import TrainBatch
from grpo.failures import ProcessDied
from grpo.ray_processes import LOST, dead_peer, describe_death
from grpo.rescoring import ScoringBatch, Source
from grpo.setups import GeneratorSetup, LearnerSetup
from grpo.types import Completion, Finished, Prompt, Request, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class LearnerActor:
    """A learner rank in a Ray process of its own; the driver never imports DeepSpeed."""

    def __init__(self, setup: LearnerSetup) -> None:
        self._setup = setup

    def __repr__(self) -> str:
        return f"learner rank {self._setup.rank}"

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free on it, for the ranks to meet at."""
        return free_address()

    def start(self, master_address: str, master_port: int) -> None:
        from grpo.learner import LearnerRank

        self._rank = LearnerRank(self._setup, master_address, master_port)
        spare_the_collector()

    def step(self, batch: TrainBatch) -> dict[str, float]:
        return self._rank.step(batch.ranks[self._setup.rank])

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._rank.score(sequences)

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[Tensor]:
        return self._rank.logprobs(batch.ranks[self._setup.rank], source)

    def refresh_reference(self) -> None:
        self._rank.refresh_reference()

    def tensor_names(self) -> list[str]:
        return self._rank.tensor_names()

    def export_buckets(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        yield from self._rank.export_buckets(bucket_bytes)

    def sleep(self) -> None:
        self._rank.sleep()

    def wake(self) -> None:
        self._rank.wake()

    def save(self, folder: str) -> None:
        self._rank.save(folder)

    def load(self, folder: str) -> None:
        self._rank.load(folder)

    def export(self, folder: str) -> None:
        self._rank.export(folder)


class GeneratorActor:
    """A generator in a Ray process of its own; the driver never imports vLLM."""

    def __init__(self, setup: GeneratorSetup) -> None:
        from grpo.generator import Generator

        self._setup = setup
        self._generator = Generator(setup)
        spare_the_collector()

    def __repr__(self) -> str:
        return f"generator {self._setup.replica}"

    def ready(self) -> None:
        return None

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Finished]:
        yield from self._generator.generate(requests, sampling)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._generator.score(sequences)

    def begin_update(self) -> None:
        self._generator.begin_update()

    def update(self, bucket: np.ndarray) -> list[str]:
        return self._generator.update(bucket)

    def finish_update(self, policy_version: int) -> None:
        self._generator.finish_update(policy_version)

    def sleep(self) -> None:
        self._generator.sleep()

    def wake(self) -> None:
        self._generator.wake()


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free on it."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def spare_the_collector() -> None:
    """Take all that start-up has made out of the garbage collector's rounds: it stays as long as the process.

    The engines make garbage for every token; walking their million other objects again and again costs vLLM 8 % of a
    small policy's generation.
    """
    gc.collect()
    gc.freeze()


def wait_for(references: Sequence[Any], deadline_s: float, what: str) -> list[Any]:
    """The results of `references`, or an error that says what did not come.

    Raises:
        TimeoutError: they did not all come within `deadline_s`.
        ProcessDied: an actor, its node, or something that it needed of them was lost.
        Exception: what an actor raised.
    """
    try:
        with ACTIVITY.waiting(what, references):
            return list(ray.get(list(references), timeout=deadline_s))
    except ray.exceptions.GetTimeoutError:
        _, late = ray.wait(list(references), num_returns=len(references), timeout=0)
        raise TimeoutError(f"{len(late)} of {len(references)} did not come within {deadline_s:.0f} s: {what}") from None
    except LOST as failure:
        if isinstance(failure, ray.exceptions.RayActorError) and failure.actor_init_failed:
            raise RuntimeError(f"a process could not start while the run waited for {what}: {failure}") from failure
        raise ProcessDied(f"{describe_death(failure)}; the run waited for {what}") from failure
    except ray.exceptions.RayTaskError as failure:
        cause = failure.cause if isinstance(failure.cause, Exception) else failure
        # Who exchanges tensors with a rank that dies fails too, and may be heard first.
        if isinstance(cause, RuntimeError) and (died := dead_peer()):
            raise ProcessDied(f"{died}; the run waited for {what}") from failure
        # What the actor raised, not Ray's wrapping of it; the remote traceback stays reachable as the cause.
        raise cause from failure


class LearnerGroup:
    """All learner ranks, called alike."""

    def __init__(self, actors: Sequence[Any], deadline_s: float) -> None:
        """Use actors that have started."""
        self._actors = list(actors)
        self._deadline_s = deadline_s

    @property
    def ranks(self) -> int:
        """Data-parallel ranks."""
        return len(self._actors)

    def steps(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        """An optimizer step on all ranks for each batch, in order, sent all at once; the global metrics of each."""
        started = []
        for batch in batches:
            shared = ray.put(batch)
            started.append([actor.step.remote(shared) for actor in self._actors])
        return [dict(wait_for(step, self._deadline_s, "a learner step")[0]) for step in started]

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on all ranks; the global metrics."""
        return self.steps([batch])[0]

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[float]]]:
        """Start scoring tokens under the learner's policy; call the result to wait for it."""
        references = [actor.score.remote(sequences) for actor in self._actors]
        return lambda: list(wait_for(references, self._deadline_s, "scoring the probe in the learner")[0])

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[Tensor]]:
        """Log-probabilities of a batch's tokens under the policy or the reference: [rank][microbatch] -> [T]."""
        shared = ray.put(batch)
        references = [actor.logprobs.remote(shared, source) for actor in self._actors]
        return wait_for(references, self._deadline_s, f"scoring completions under the {source}")

    def refresh_reference(self) -> None:
        """Make the reference the policy as it is now."""
        references = [actor.refresh_reference.remote() for actor in self._actors]
        wait_for(references, self._deadline_s, "refreshing the reference")

    def tensor_names(self) -> list[str]:
        """Every name under which the policy has a tensor."""
        return list(wait_for([self._actors[0].tensor_names.remote()], self._deadline_s, "the tensors' names")[0])

    def export_buckets(self, bucket_bytes: int) -> Iterator[Any]:
        """References to the policy's weights in buckets, as they are gathered."""
        # Two buckets wait at most: a large policy must not fill the object store while generators still load.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
        streams: list[Any] = [actor.export_buckets.options(**options).remote(bucket_bytes) for actor in self._actors]
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
        with ACTIVITY.waiting(what, [stream]):
            return bool(ray.wait([stream], timeout=self._deadline_s, fetch_local=False)[0])

    def sleep(self) -> None:
        """Move optimizer states off the devices."""
        wait_for([actor.sleep.remote() for actor in self._actors], self._deadline_s, "moving states off the devices")

    def wake(self) -> None:
        """Move them back."""
        wait_for([actor.wake.remote() for actor in self._actors], self._deadline_s, "moving states to the devices")

    def save(self, folder: str) -> None:
        """Write training state and policy into `folder`, which every rank must be able to reach."""
        wait_for([actor.save.remote(folder) for actor in self._actors], self._deadline_s, "saving a checkpoint")

    def load(self, folder: str) -> None:
        """Go on from what `save` wrote."""
        wait_for([actor.load.remote(folder) for actor in self._actors], self._deadline_s, "loading a checkpoint")

    def export(self, folder: str) -> None:
        """Write the policy alone, in Hugging Face format."""
        wait_for([actor.export.remote(folder) for actor in self._actors], self._deadline_s, "exporting the policy")


class GeneratorGroup:
    """All generator replicas; prompts are dealt out to them in turn."""

    def __init__(self, actors: Sequence[Any], deadline_s: float, update_deadline_s: float) -> None:
        """Use actors that have started.

        Args:
            actors: the replicas.
            deadline_s: longest wait for the next finished group.
            update_deadline_s: longest wait for one part of a weight update.
        """
        self._actors = list(actors)
        self._deadline_s = deadline_s
        self._update_deadline_s = update_deadline_s

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Sample for each prompt; (index, completions) as groups finish on any replica."""
        requests = [
            Request(i, prompt.token_ids, seed) for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        shares = [requests[replica :: len(self._actors)] for replica in range(len(self._actors))]
        running: list[Any] = [
            actor.generate.options(num_returns="streaming").remote(share, sampling)
            for actor, share in zip(self._actors, shares, strict=True)
            if share
        ]
        stream: Any
        while running:
            ready, running = ray.wait(running, num_returns=1, timeout=self._deadline_s, fetch_local=False)
            if not ready:
                raise TimeoutError(
                    f"no group finished within rollout.deadline_s={self._deadline_s:.0f} on "
                    f"{len(running)} generators; shorten completions, raise the deadline, or look at their logs"
                )
            for stream in ready:
                try:
                    reference = next(stream)
                except StopIteration:
                    continue
                yield from wait_for([reference], self._deadline_s, "a finished group")[0]
                running.append(stream)

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[list[float]]]]:
        """Start scoring tokens on every replica; call the result to wait: [replica][sequence][token]."""
        references = [actor.score.remote(sequences) for actor in self._actors]
        return lambda: wait_for(references, self._update_deadline_s, "scoring the probe in the generators")

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets on every replica and stamp them as `policy_version`; the names of the tensors that came."""
        names: list[str] = []
        # An actor takes its calls in order, so none waits for the answer to the one before it; but a bucket is only
        # asked for when the one before the last is loaded, or they would fill the object store.
        begun = [actor.begin_update.remote() for actor in self._actors]
        loading: collections.deque[list[Any]] = collections.deque()
        for bucket in buckets:
            loading.append([actor.update.remote(bucket) for actor in self._actors])
            if len(loading) > 1:
                names += self._all("load a bucket of weights", loading.popleft())[0]
        finished = [actor.finish_update.remote(policy_version) for actor in self._actors]
        self._all("begin a weight update", begun)
        for loaded in loading:
            names += self._all("load a bucket of weights", loaded)[0]
        self._all("finish a weight update", finished)
        return names

    def sleep(self) -> None:
        """Give the devices' memory back; what was sampled before is not kept in the cache."""
        self._all("give memory back", [actor.sleep.remote() for actor in self._actors])

    def wake(self) -> None:
        """Take it again."""
        self._all("take memory again", [actor.wake.remote() for actor in self._actors])

    def _all(self, what: str, references: Sequence[Any]) -> list[Any]:
        return wait_for(references, self._update_deadline_s, f"{what} on the generators")
