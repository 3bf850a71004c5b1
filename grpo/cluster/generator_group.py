"""All generator replicas behind one interface.

The rest of the project uses only `GeneratorGroup` and its `SampleStream`. It does not use Ray directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from grpo.cluster import activity
from grpo.cluster.ready import ready_of
from grpo.cluster.receivers import Losses, OneReplica, PushUnderWay, Scores, begin_update, load_buckets, start_scoring
from grpo.cluster.replica import GeneratorLimits, Lost, Replica, Work, result_of
from grpo.cluster.sample_stream import SampleStream
from grpo.cluster.slow_generators import GeneratorThroughput
from grpo.cluster.waiting import RemoteActor, wait_for
from grpo.report.logs import see_log
from grpo.report.profiling import ActorProfile
from grpo.types import ActorId, Completion, Finished, Phase, Prompt, Request, RequestId, SamplingParams
from rewards.pool.busy_clock import Busy

if TYPE_CHECKING:
    from grpo.generator.engine import Generator

Result = TypeVar("Result")

# Seconds after which a generator sends a report even if it has no finished groups.
BEAT_S = 5.0


class GeneratorGroup:
    """All generator replicas; each request goes to the replica with the fewest unfinished completions.

    A replica that dies or hangs is restarted and gets the current weights. Its unfinished work goes to the other
    replicas at once; if there are no other replicas, the restarted replica gets the work. The group has no thread, so
    it notices a loss only while the caller waits for a stream or loads weights.
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
            place: function that starts an actor and returns it. Its arguments: number of the replica, Ray reference
                that the actor waits for, and whether the actor gets newer weights after its start.
            replicas: number of replicas.
            limits: deadlines, and the maximum number of restarts.
            tell: function that gets a line about each restart.
        """
        self.limits = limits
        self._tell = tell
        self._beat_s = min(BEAT_S, limits.hang_s / 3)
        self._updated = False
        self._under_way = PushUnderWay()
        self._replicas = [
            Replica(index, lambda index, after: place(index, after, self._updated)) for index in range(replicas)
        ]
        self._push: Callable[[int], None] | None = None
        self._restarts = 0
        self._streams = 0
        self._moved_at = 0.0

    def wait_started(self) -> None:
        """Wait until all engines are up.

        Raises:
            TimeoutError: a replica did not start within `cluster.start_deadline_s`.
            RuntimeError: a replica died during its start.
        """
        starting = [replica.starting for replica in self._replicas]
        all_processes = wait_for(starting, self.limits.start_s, f"{len(starting)} generators to load the policy")
        for replica, processes in zip(self._replicas, all_processes, strict=True):
            replica.started(processes)
            replica.admit()

    def on_restart(self, push: Callable[[int], None]) -> None:
        """Set the function `push(replica)`, which uses `only` to load the current weights on a restarted replica."""
        self._push = push

    def stream(self, sampling: SamplingParams) -> SampleStream:
        """Return a new stream of requests; several streams may share the replicas."""
        self._streams += 1
        return SampleStream(self._streams, sampling, self.ask, self.collect)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Sample for each prompt; yield (index, completions) as groups finish on any replica."""
        stream = self.stream(sampling)
        stream.submit(
            [Request(i, prompt.token_ids, seed) for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))]
        )
        while stream.unfinished:
            yield from stream.finished()

    @property
    def actors(self) -> list[RemoteActor[Generator]]:
        """The actors of the replicas that are up; a restarted replica has a new actor."""
        return [replica.remote for replica in self._up()]

    def ask(self, work: Sequence[Work]) -> None:
        """Distribute work to the replicas. Streams call this."""
        shares: dict[Replica, dict[RequestId, Work]] = {}
        loads = {replica: replica.load for replica in self._up() or self._replicas}
        for item in work:
            freest = min(loads, key=lambda replica: loads[replica])
            loads[freest] += item.sampling.samples
            shares.setdefault(freest, {})[item.request.id] = item
        for replica, share in shares.items():
            replica.ask(share)
            replica.listen(self._beat_s)

    def collect(self, finished: Finished, wait: bool) -> None:
        """Add finished groups to `finished`; if `wait` is set, wait for at least one group. Streams call this."""
        began = time.monotonic()
        self._hear(0.0)
        if wait and not finished:
            reports = [replica.report for replica in self._replicas if replica.report]
            with activity.current().waiting("a finished group", reports):
                self._wait_for_group(finished, began)

    def _wait_for_group(self, finished: Finished, began: float) -> None:
        while not finished:
            remaining_s = max(began, self._moved_at) + self.limits.group_s - time.monotonic()
            if remaining_s <= 0:
                late = [replica for replica in self._replicas if replica.work]
                unfinished = ", ".join(f"{replica.id} ({len(replica.work)})" for replica in late)
                raise TimeoutError(
                    f"no group finished within rollout.deadline_s={self.limits.group_s:.0f}; unfinished groups are on "
                    f"{unfinished}: shorten completions, raise the deadline, or look at the generators' logs"
                    f"{see_log(*(str(replica.id) for replica in late))}"
                )
            self._hear(remaining_s)

    def only(self, index: int) -> OneReplica:
        """Return a single replica, to load weights on it and to prove that the weights arrived."""
        return OneReplica(self._replicas[index], self.limits.update_s, self._under_way)

    def lost_in_push(self) -> str | None:
        """Describe the generator that was lost during the push that runs now; None if no generator was lost."""
        return self._under_way.lost()

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets on every replica as version `policy_version`; return the names of the loaded tensors.

        Requests may be in progress; see `grpo.generator.engine.Generator`. A lost replica is restarted. If the members
        of the push are connected to each other, a loss ends the push, and all its replicas are restarted.
        """
        self._updated = True
        before = Losses(self.limits.update_s)
        taking = begin_update(self._up(), before)
        # A replica that is lost already takes no part, so no other member waits for it.
        self._replace_all(before)
        losses, names = Losses(self.limits.update_s), list[str]()
        if taking:
            with self._under_way.push(losses):
                names = load_buckets(taking, buckets, policy_version, losses)
                taking = []
        if taking:
            # The push ended in the middle. The other replicas have parts of two policies, and may still wait in their
            # part of a broadcast.
            reason = f"its push was ended, because {losses.look()}"
            losses.reasons = {replica: losses.reasons.get(replica, Lost(reason)) for replica in taking}
        self._replace_all(losses)
        self._wait_until_up()
        return names

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[Scores]]:
        """Start scoring tokens on every replica that is up.

        Call the returned function to wait for the log-probabilities: [replica][sequence][token].
        """
        calls = {replica: start_scoring(replica, sequences) for replica in self._up()}

        def wait() -> list[Scores]:
            losses = Losses(self.limits.update_s)
            scores = list(losses.settle("score the probe", calls).values())
            self._replace_all(losses)
            if not scores:
                self._wait_until_up()
                return self.score(sequences)()
            return scores

        return wait

    def take_sampled(self) -> list[GeneratorThroughput]:
        """Return the throughput of each running replica since the last call."""
        return [replica.take_sampled() for replica in self._up()]

    def sleep(self) -> None:
        """Free the devices' memory; the engines also drop the cache of earlier samples."""
        self._everywhere("free its memory", lambda generator: generator.sleep(), Phase.SWAP)

    def wake(self) -> None:
        """Allocate the devices' memory again."""
        self._everywhere("allocate its memory again", lambda generator: generator.wake(), Phase.SWAP)

    def take_busy(self) -> dict[ActorId, Busy]:
        """Return each replica's reported activities since the last call, with times of the replica's clock."""
        return {replica.id: replica.busy.take() for replica in self._replicas}

    def start_profile(self) -> None:
        """Start to profile the engines."""
        starting = [replica.remote.handle.start_profile.remote() for replica in self._up()]
        wait_for(starting, self.limits.update_s, "starting the profile")

    def stop_profile(self, folder: str) -> list[ActorProfile]:
        """Stop profiling; return a profile of each process of an engine, and write their traces into `folder`."""
        ending = [replica.remote.handle.stop_profile.remote(folder) for replica in self._up()]
        profiles = wait_for(ending, self.limits.update_s, "writing the generators' profile")
        return [profile for each in profiles for profile in each]

    def _up(self) -> list[Replica]:
        return [replica for replica in self._replicas if replica.up]

    def _everywhere(self, what: str, verb: Callable[[Generator], Result], doing: Phase) -> list[Result]:
        """Return the results of `verb` on all running replicas; restart lost replicas."""
        losses = Losses(self.limits.update_s)
        calls = {replica: replica.remote.start(verb, doing) for replica in self._up()}
        results = list(losses.settle(what, calls).values())
        self._replace_all(losses)
        return results

    def _hear(self, wait_s: float) -> None:
        """Wait for the first report of a replica, and read all reports that have arrived."""
        for replica in self._replicas:
            replica.listen(self._beat_s)
        waiting = {call: replica for replica in self._replicas for call in (replica.starting, replica.report) if call}
        if not waiting:
            return
        if wait_s > 0:
            ready_of(list(waiting), min(wait_s, self._beat_s), count=1, fetch=False)
        ready, silent = ready_of(list(waiting), 0.0, fetch=False)
        for reference in ready:
            replica = waiting[reference]
            try:
                if replica.up:
                    if replica.hear(self.limits.hang_s):
                        self._moved_at = time.monotonic()
                        activity.current().moved()
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
        """Give a restarted replica the current weights, then its work."""
        replica.started(result_of(replica.starting, self.limits.start_s, "start"))
        if self._updated:
            if self._push is None:
                raise RuntimeError(f"{replica.id} was restarted but cannot get its weights; call `on_restart` first")
            self._push(replica.index)
        replica.admit()
        self._moved_at = time.monotonic()
        self._tell(
            f"{replica.id} was restarted: {replica.restarted_for}; {replica.replayed} requests were "
            f"replayed, {self._moved_at - replica.began:.1f} s"
        )

    def _replace_all(self, losses: Losses) -> None:
        for replica, reason in losses.reasons.items():
            self._replace(replica, str(reason))

    def _replace(self, replica: Replica, reason: str) -> None:
        self._restarts += 1
        if self._restarts > self.limits.max_restarts:
            raise RuntimeError(
                f"{replica.id} was lost: {reason}{see_log(str(replica.id))}; and the run has already restarted "
                f"generators generator.max_restarts={self.limits.max_restarts} times. Find out why they die (memory, a "
                "prompt that vLLM cannot take, a device), or raise this limit"
            )
        unfinished = replica.replace(reason)
        if unfinished:
            self.ask(unfinished)

    def _wait_until_up(self) -> None:
        while not self._up():
            self._hear(self.limits.start_s)
