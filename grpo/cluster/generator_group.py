"""All generator replicas, called as one; part of the Ray room.

The rest of the project knows `GeneratorGroup` and its `SampleStream` only, and nothing of Ray.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from grpo.cluster.activity import ACTIVITY
from grpo.cluster.replica import GeneratorLimits, Lost, Replica, Work, result_of
from grpo.cluster.slow_generators import GeneratorThroughput
from grpo.cluster.waiting import wait_for
from grpo.report.logs import see_log
from grpo.report.profiling import ActorProfile
from grpo.types import Completion, Finished, Prompt, Request, SamplingParams
from rewards.pool.busy_clock import Busy

# Longest time for which a generator that has nothing to hand over keeps silent.
BEAT_S = 5.0


class SampleStream:
    """Requests with the same sampling, handed out as their groups finish."""

    def __init__(self, group: GeneratorGroup, sampling: SamplingParams) -> None:
        """Make one by `GeneratorGroup.stream`."""
        self._group = group
        self._sampling = sampling
        self._unfinished: set[int] = set()
        self._finished: Finished = []

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and not yet handed out."""
        return len(self._unfinished)

    def submit(self, requests: Sequence[Request]) -> None:
        """Begin to sample; returns at once.

        Args:
            requests: their indices are the caller's, each unique among those that are unfinished.

        Raises:
            ValueError: an index is in use.
        """
        for request in requests:
            if request.index in self._unfinished:
                raise ValueError(f"request {request.index} is unfinished in this stream; give each an index of its own")
            self._unfinished.add(request.index)
        self._group.ask([Work(request, self._sampling, self._finished.append) for request in requests])

    def finished(self, wait: bool = True) -> Finished:
        """Groups that finished since the last call, on any replica.

        Args:
            wait: until there is at least one; otherwise there may be none.

        Raises:
            TimeoutError: none came in `rollout.deadline_s`.
            RuntimeError: nothing is unfinished to wait for, or replicas die again and again.
        """
        if wait and not self._unfinished:
            raise RuntimeError("a wait for a group would never end: nothing is unfinished in this stream")
        self._group.collect(self._finished, wait=wait)
        handed_out = self._finished.copy()
        self._finished.clear()
        self._unfinished.difference_update(index for index, _ in handed_out)
        return handed_out


class GeneratorGroup:
    """All generator replicas; each request goes to the one with the fewest unfinished completions.

    A replica that dies or hangs is started again in its place and given the present weights; what it had not finished
    goes to the others at once or, where there are none, to it. Nothing here runs beside the caller: a loss is noticed
    while a stream is waited for or weights are loaded.
    """

    def __init__(
        self,
        place: Callable[[int, Any, bool], Any],
        replicas: int,
        limits: GeneratorLimits,
        tell: Callable[[str], object],
    ) -> None:
        """Start all replicas; `wait_started` waits for them.

        Args:
            place: (replica, reference to wait for, whether it is given newer weights as soon as it has started) -> a
                new actor for it.
            replicas: how many.
            limits: deadlines.
            tell: is given a line about each restart.
        """
        self.limits = limits
        self._tell = tell
        self._beat_s = min(BEAT_S, limits.hang_s / 3)
        self._updated = False
        self._replicas = [
            Replica(index, lambda index, after: place(index, after, self._updated)) for index in range(replicas)
        ]
        self._push: Callable[[int], None] | None = None
        self._restarts = 0
        self._asked = 0
        self._moved_at = 0.0

    def wait_started(self) -> None:
        """Wait until all engines are up.

        Raises:
            TimeoutError: not within `cluster.start_deadline_s`.
            RuntimeError: one died on its way.
        """
        starting = [replica.starting for replica in self._replicas]
        found = wait_for(starting, self.limits.start_s, f"{len(starting)} generators to load the policy")
        for replica, processes in zip(self._replicas, found, strict=True):
            replica.started(processes)
            replica.admit()

    def on_restart(self, push: Callable[[int], None]) -> None:
        """Say how a replica that was restarted gets the present weights: `push(replica)` gives them, through `only`."""
        self._push = push

    def stream(self, sampling: SamplingParams) -> SampleStream:
        """A stream of requests; several may share the replicas."""
        return SampleStream(self, sampling)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Sample for each prompt; (index, completions) as groups finish on any replica."""
        stream = self.stream(sampling)
        stream.submit(
            [Request(i, prompt.token_ids, seed) for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))]
        )
        while stream.unfinished:
            yield from stream.finished()

    @property
    def actors(self) -> list[Any]:
        """The replicas that are up; one that was started again is another."""
        return [replica.actor for replica in self._up()]

    def ask(self, work: Sequence[Work]) -> None:
        """Deal out work. Streams call this."""
        shares: dict[Replica, dict[int, Work]] = {}
        loads = {replica: replica.load for replica in self._up() or self._replicas}
        for one in work:
            freest = min(loads, key=lambda replica: loads[replica])
            loads[freest] += one.sampling.samples
            self._asked += 1
            shares.setdefault(freest, {})[self._asked] = one
        for replica, share in shares.items():
            replica.ask(share)
            replica.listen(self._beat_s)

    def collect(self, finished: Finished, *, wait: bool) -> None:
        """Hear the replicas; where asked, until `finished` has something in it. Streams call this."""
        began = time.monotonic()
        self._hear(0.0)
        if wait and not finished:
            with ACTIVITY.waiting("a finished group", [one.report for one in self._replicas if one.report]):
                self._collect_one(finished, began)

    def _collect_one(self, finished: Finished, began: float) -> None:
        while not finished:
            left_s = max(began, self._moved_at) + self.limits.group_s - time.monotonic()
            if left_s <= 0:
                unfinished = ", ".join(
                    f"generator {replica.index} ({len(replica.work)})" for replica in self._replicas if replica.work
                )
                raise TimeoutError(
                    f"no group finished within rollout.deadline_s={self.limits.group_s:.0f}; unfinished are those of "
                    f"{unfinished}: shorten completions, raise the deadline, or look at their logs"
                    f"{see_log(*(f'generator {replica.index}' for replica in self._replicas if replica.work))}"
                )
            self._hear(left_s)

    def only(self, index: int) -> OneReplica:
        """One replica alone, to give weights to and to prove that they arrived."""
        return OneReplica(self, self._replicas[index])

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets on every replica and stamp them as `policy_version`; the names of the tensors that came.

        Requests may be under way; see `grpo.generator.engine.Generator`. A replica that is lost meanwhile is restarted.
        """
        self._updated = True
        names, lost = self.load(self._up(), buckets, policy_version)
        self._replace_all(lost)
        self._wait_for_one()
        return names

    def load(
        self, replicas: Sequence[Replica], buckets: Iterable[Any], policy_version: int
    ) -> tuple[list[str], dict[Replica, Lost]]:
        """Load all buckets on these; the names of the tensors that came, and which replicas were lost."""
        names: list[str] = []
        lost: dict[Replica, Lost] = {}

        def settle(what: str, calls: dict[Replica, Any]) -> None:
            found = list(self._settle(what, calls, lost).values())
            names.extend(found[0] or () if found else ())

        # An actor takes its calls in order, so none waits for the answer to the one before it; but a bucket is only
        # asked for when the one before the last is loaded, or they would fill the object store.
        begun = {replica: replica.actor.begin_update.remote() for replica in replicas}
        loading: collections.deque[dict[Replica, Any]] = collections.deque()
        # Without anyone left the buckets are still taken: the learner waits until they are.
        for bucket in buckets:
            loading.append(
                {replica: replica.actor.update.remote(bucket) for replica in replicas if replica not in lost}
            )
            if len(loading) > 1:
                settle("load a bucket of weights", loading.popleft())
        finished = {
            replica: replica.actor.finish_update.remote(policy_version) for replica in replicas if replica not in lost
        }
        settle("begin a weight update", begun)
        for calls in loading:
            settle("load a bucket of weights", calls)
        for replica, busy in self._settle("finish a weight update", finished, lost).items():
            replica.busy.merge(busy)
        return names, lost

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[list[float]]]]:
        """Start scoring tokens on every replica that is up; call the result to wait: [replica][sequence][token]."""
        calls = {replica: replica.actor.score.remote(sequences) for replica in self._up()}

        def wait() -> list[list[list[float]]]:
            lost: dict[Replica, Lost] = {}
            found = list(self._settle("score the probe", calls, lost).values())
            self._replace_all(lost)
            if not found:
                self._wait_for_one()
                return self.score(sequences)()
            return found

        return wait

    def take_sampled(self) -> list[GeneratorThroughput]:
        """What each replica that is up has done since this was last asked."""
        return [replica.take_sampled() for replica in self._up()]

    def sleep(self) -> None:
        """Give the devices' memory back; what was sampled before is not kept in the cache."""
        lost: dict[Replica, Lost] = {}
        self._settle("give memory back", {one: one.actor.sleep.remote() for one in self._up()}, lost)
        self._replace_all(lost)

    def wake(self) -> None:
        """Take it again."""
        lost: dict[Replica, Lost] = {}
        self._settle("take memory again", {one: one.actor.wake.remote() for one in self._up()}, lost)
        self._replace_all(lost)

    def take_busy(self) -> dict[str, Busy]:
        """What each replica has told since this was last asked of what it did, and when, by its own clock."""
        return {f"generator {replica.index}": replica.busy.take() for replica in self._replicas}

    def start_profile(self) -> None:
        """Watch what the engines compute from now on."""
        names = [(one, f"generator {one.index}") for one in self._up()]
        starting = [replica.actor.start_profile.remote(name) for replica, name in names]
        wait_for(starting, self.limits.update_s, "starting the profile")

    def stop_profile(self, folder: str) -> list[ActorProfile]:
        """What each has computed since; traces are written into `folder`."""
        ending = [one.actor.stop_profile.remote(f"{folder}/generator_{one.index}.json.gz") for one in self._up()]
        return wait_for(ending, self.limits.update_s, "writing the generators' profile")

    def _up(self) -> list[Replica]:
        return [replica for replica in self._replicas if replica.up]

    def _settle(self, what: str, calls: dict[Replica, Any], lost: dict[Replica, Lost]) -> dict[Replica, Any]:
        """Results of the calls to replicas that are not lost; adds those that are lost here."""
        found = {}
        for replica, reference in calls.items():
            if replica in lost:
                continue
            try:
                found[replica] = result_of(reference, self.limits.update_s, what)
            except Lost as reason:
                lost[replica] = reason
        return found

    def _hear(self, wait_s: float) -> None:
        """Wait for the first replica that has something to say, and hear all that have."""
        for replica in self._replicas:
            replica.listen(self._beat_s)
        waiting = {one: replica for replica in self._replicas for one in (replica.starting, replica.report) if one}
        if not waiting:
            return
        ray.wait(list(waiting), num_returns=1, timeout=min(wait_s, self._beat_s), fetch_local=False)
        ready, silent = ray.wait(list(waiting), num_returns=len(waiting), timeout=0, fetch_local=False)
        for reference in ready:
            replica = waiting[reference]
            try:
                if replica.up:
                    heard = replica.hear(self.limits.hang_s)
                    if heard:
                        self._moved_at = time.monotonic()
                        ACTIVITY.moved()
                else:
                    self._take_in(replica)
            except Lost as reason:
                self._replace(replica, str(reason))
        for reference in silent:
            self._check(waiting[reference])
        for replica in self._replicas:
            replica.listen(self._beat_s)

    def _check(self, replica: Replica) -> None:
        """Replace a replica that has been silent for too long."""
        if replica.up and replica.silent_s() > self.limits.hang_s + self._beat_s:
            self._replace(replica, f"its process did not answer for {replica.silent_s():.0f} s")
        elif not replica.up and time.monotonic() - replica.began > self.limits.start_s:
            self._replace(replica, f"it did not start within {self.limits.start_s:.0f} s")

    def _take_in(self, replica: Replica) -> None:
        """Give a replica that was restarted the present weights, then work."""
        replica.started(result_of(replica.starting, self.limits.start_s, "start"))
        if self._updated:
            if self._push is None:
                raise RuntimeError(f"generator {replica.index} was restarted and nothing says how it gets its weights")
            self._push(replica.index)
        replica.admit()
        self._moved_at = time.monotonic()
        self._tell(
            f"generator {replica.index} was restarted: {replica.restarted_for}; {replica.replayed} requests were "
            f"replayed, {self._moved_at - replica.began:.1f} s"
        )

    def _replace_all(self, lost: dict[Replica, Lost]) -> None:
        for replica, reason in lost.items():
            self._replace(replica, str(reason))

    def _replace(self, replica: Replica, reason: str) -> None:
        self._restarts += 1
        if self._restarts > self.limits.max_restarts:
            raise RuntimeError(
                f"generator {replica.index} was lost: {reason}{see_log(f'generator {replica.index}')}; and the run has "
                "already restarted generators "
                f"generator.max_restarts={self.limits.max_restarts} times. Find out why they die (memory, a prompt "
                "that vLLM cannot take, a device), or raise it"
            )
        unfinished = replica.replace(reason)
        if unfinished:
            self.ask(list(unfinished.values()))

    def _wait_for_one(self) -> None:
        while not self._up():
            self._hear(self.limits.start_s)


@dataclass(frozen=True, slots=True)
class OneReplica:
    """The interface of a group by which weights are given and proven, for one of its replicas."""

    group: GeneratorGroup
    replica: Replica

    @property
    def actors(self) -> list[Any]:
        """Its actor, alone."""
        return [self.replica.actor]

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets; the names of the tensors that came.

        Raises:
            Lost: the replica died meanwhile.
        """
        names, lost = self.group.load([self.replica], buckets, policy_version)
        for reason in lost.values():
            raise reason
        return names

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[list[float]]]]:
        """Start scoring tokens; call the result to wait."""
        reference = self.replica.actor.score.remote(sequences)
        return lambda: [result_of(reference, self.group.limits.update_s, "score the probe")]
