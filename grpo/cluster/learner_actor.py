"""A learner rank in a Ray process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from grpo.cluster.session import session_logs
from grpo.cluster.waiting import ASIDE, free_address
from grpo.report.log_file import LogPlace
from grpo.report.logs import follow_libraries, logs_failures, open_actor_log
from grpo.start_up import spare_the_collector, without_collector
from grpo.types import ActorId, ActorKind, Phase
from rewards.pool.busy_clock import Busy, BusyClock

# An actor's process imports this module to find its class. torch and other modules are imported when the actor starts,
# with garbage collection off.
if TYPE_CHECKING:
    from grpo.learner.rank import LearnerRank
    from grpo.learner.setup import LearnerSetup
    from grpo.report.profiling import ActorProfile

Result = TypeVar("Result")
More = TypeVarTuple("More")

# While the first thread waits for a lost generator, this thread ends the push.
CONCURRENCY_GROUPS = {ASIDE: 1}

logger = logging.getLogger(__name__)


@logs_failures
class LearnerActor:
    """A learner rank in a separate Ray process, so the driver never imports DeepSpeed.

    Only `LearnerRank` defines the rank's operations (see `grpo.cluster.waiting`).
    """

    def __init__(self, setup: LearnerSetup, logs: LogPlace | None = None) -> None:
        self._setup = setup
        self._id = ActorId(ActorKind.LEARNER, setup.rank)
        self._log = open_actor_log(logs, repr(self), session_logs)
        self._busy = BusyClock()

    def __repr__(self) -> str:
        return str(self._id)

    def address(self) -> tuple[str, int]:
        """Return an address and a free port of this node, through which the ranks can connect to each other."""
        return free_address()

    def start(self, master_address: str, master_port: int) -> str:
        """Load the policy and connect to the other ranks through an address; return the path of the rank's log."""
        with without_collector():
            from grpo.learner.rank import LearnerRank

            follow_libraries()
            self._rank = LearnerRank(self._setup, master_address, master_port)
        spare_the_collector()
        logger.info("the policy is loaded and all ranks have connected at %s:%d", master_address, master_port)
        return self._log

    def call(self, verb: Callable[[LearnerRank, *More], Result], doing: Phase | None, *arguments: *More) -> Result:
        """Run `verb(rank, *arguments)`, and count the time as `doing`."""
        with self._busy.during(doing) if doing else contextlib.nullcontext():
            return verb(self._rank, *arguments)

    def stream(
        self, verb: Callable[[LearnerRank, *More], Iterator[Result]], doing: Phase, *arguments: *More
    ) -> Iterator[Result]:
        """Yield the items of `verb(rank, *arguments)`, and count the time that the items take as `doing`."""
        yield from self._busy.each(doing, verb(self._rank, *arguments))

    def take_busy(self) -> Busy:
        """Return the rank's activities and times since the last call."""
        return self._busy.take()

    def start_profile(self) -> None:
        from grpo.report.profiling import OperatorProfiler

        self._profiler = OperatorProfiler(self._id)

    def stop_profile(self, folder: str) -> ActorProfile:
        return self._profiler.stop(Path(folder) / f"learner_{self._setup.rank}.json.gz")
