"""A learner rank in a Ray process. Part of the Ray room."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from grpo.cluster.session import session_logs
from grpo.cluster.start_up import spare_the_collector, without_collector
from grpo.cluster.waiting import free_address
from grpo.report.log_file import LogPlace
from grpo.report.logs import follow_libraries, logs_failures, open_actor_log
from rewards.pool.busy_clock import Busy, BusyClock

# An actor's process imports this module to find its class. torch and the rest are imported when the actor starts,
# with garbage collection off.
if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from grpo.algorithm.minibatches import RankBatch
    from grpo.algorithm.packing import Microbatch
    from grpo.algorithm.rescoring import Source
    from grpo.learner.setup import LearnerSetup
    from grpo.report.profiling import ActorProfile
    from grpo.weights.buckets import Bucket, TensorInfo
    from grpo.weights.patches import Pushed
    from grpo.weights.sender import GroupTransport, Handle

logger = logging.getLogger(__name__)


@logs_failures
class LearnerActor:
    """A learner rank in a Ray process of its own; the driver never imports DeepSpeed.

    Once it is started, its methods are those of `grpo.learner.rank.LearnerRank`.
    """

    def __init__(self, setup: LearnerSetup, logs: LogPlace | None = None) -> None:
        self._setup = setup
        self._log = open_actor_log(logs, repr(self), session_logs)
        self._busy = BusyClock()

    def __repr__(self) -> str:
        return f"learner rank {self._setup.rank}"

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free on it, for the ranks to meet at."""
        return free_address()

    def start(self, master_address: str, master_port: int) -> str:
        """Load the policy and meet the other ranks at an address; the file of the rank's log."""
        with without_collector():
            from grpo.learner.rank import LearnerRank

            follow_libraries()
            self._rank = LearnerRank(self._setup, master_address, master_port)
        spare_the_collector()
        logger.info("the policy is loaded and all ranks have met at %s:%d", master_address, master_port)
        return self._log

    def step(self, batch: RankBatch) -> tuple[dict[str, float], Busy]:
        with self._busy.during("learn"):
            metrics = self._rank.step(batch)
        return metrics, self._busy.take()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        with self._busy.during("score"):
            return self._rank.score(sequences)

    def logprobs(self, microbatches: Sequence[Microbatch], source: Source) -> list[Tensor]:
        with self._busy.during("score"):
            return self._rank.logprobs(microbatches, source)

    def refresh_reference(self) -> None:
        with self._busy.during("learn"):
            self._rank.refresh_reference()

    def tensors(self) -> list[TensorInfo]:
        return self._rank.tensors()

    def export_buckets(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        yield from self._busy.each("sync", self._rank.export_buckets(bucket_bytes))

    def export_changes(self, bucket_bytes: int, whole: bool) -> Iterator[np.ndarray]:
        yield from self._busy.each("sync", self._rank.export_changes(bucket_bytes, whole=whole))

    def take_pushed(self) -> Pushed:
        return self._rank.take_pushed()

    def open_sender(self, transport: GroupTransport, members: Sequence[str], deadline_s: float) -> tuple[str, int]:
        address = ray.util.get_node_ip_address()
        return address, self._rank.open_sender(transport, address, members, deadline_s)

    def join_receivers(self) -> None:
        self._rank.join_receivers()

    def send_bucket(self, bucket: Bucket) -> Handle | None:
        with self._busy.during("sync"):
            return self._rank.send_bucket(bucket)

    def sleep(self) -> None:
        with self._busy.during("swap"):
            self._rank.sleep()

    def wake(self) -> None:
        with self._busy.during("swap"):
            self._rank.wake()

    def save(self, folder: str) -> Busy:
        with self._busy.during("checkpoint"):
            self._rank.save(folder)
        logger.info("wrote a checkpoint into %s", folder)
        return self._busy.take()

    def load(self, folder: str) -> None:
        self._rank.load(folder)
        logger.info("goes on from %s", folder)

    def export(self, folder: str) -> None:
        with self._busy.during("checkpoint"):
            self._rank.export(folder)

    def start_profile(self) -> None:
        from grpo.report.profiling import OperatorProfiler

        self._profiler = OperatorProfiler(f"learner rank {self._setup.rank}")

    def stop_profile(self, folder: str) -> ActorProfile:
        return self._profiler.stop(Path(folder) / f"learner_{self._setup.rank}.json.gz")
