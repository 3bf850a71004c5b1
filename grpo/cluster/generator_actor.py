"""A generator in a Ray process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import ray

from grpo.cluster.session import session_logs
from grpo.generator.loop import EngineLoop
from grpo.report.log_file import LogPlace
from grpo.report.logs import follow_libraries, logs_failures, open_actor_log
from grpo.start_up import spare_the_collector, without_collector
from grpo.types import ActorId, ActorKind, GeneratorReport, Phase, Request, SamplingParams
from rewards.pool.busy_clock import Busy

# An actor's process imports this module to find its class. torch and other modules are imported when the actor starts,
# with garbage collection off.
if TYPE_CHECKING:
    from grpo.generator.engine import Generator
    from grpo.generator.setup import GeneratorSetup
    from grpo.report.profiling import ActorProfile

Result = TypeVar("Result")
More = TypeVarTuple("More")

# A call for finished groups waits until a group is finished. It runs in a separate thread, so other calls can run.
CONCURRENCY_GROUPS = {"reports": 1}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one generator.

    Attributes:
        node: Ray's id of the node.
        address: the node's IP address.
        created: (process id, creation time in seconds since the epoch) of each process.
        log: path of the generator's log.
    """

    node: str
    address: str
    created: tuple[tuple[int, float], ...]
    log: str


@logs_failures
class GeneratorActor:
    """A generator in a separate Ray process, so the driver never imports vLLM.

    Only `Generator` defines the generator's operations (see `grpo.cluster.waiting`). The operations run in the single
    thread that holds the engine.
    """

    def __init__(self, setup: GeneratorSetup, after: object = None, logs: LogPlace | None = None) -> None:
        """Load the policy. `after` may be a Ray reference; Ray starts the actor only when the value is ready."""
        self._id = ActorId(ActorKind.GENERATOR, setup.replica)
        self._log = open_actor_log(logs, repr(self), session_logs)
        with without_collector():
            from grpo.generator.engine import Generator

            follow_libraries()
            self._loop = EngineLoop(lambda: Generator(setup))
        spare_the_collector()
        logger.info("the engine is up, with the policy of %s", setup.policy_path)

    def __repr__(self) -> str:
        return str(self._id)

    def ready(self) -> Processes:
        """Wait until the engine is up; return the generator's node and processes."""
        import psutil

        actor = psutil.Process()
        created = [(process.pid, process.create_time()) for process in (actor, *actor.children(recursive=True))]
        return Processes(
            ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), tuple(created), self._log
        )

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Begin to sample for these requests; return at once."""
        logger.debug("%d requests of %d completions each", len(requests), sampling.samples)
        self._loop.submit(requests, sampling)

    def take(self, wait_s: float) -> GeneratorReport:
        """Return the groups finished since the last call; wait up to `wait_s` seconds for the first group."""
        return self._loop.take(wait_s)

    def call(self, verb: Callable[[Generator, *More], Result], doing: Phase | None, *arguments: *More) -> Result:
        """Run `verb(generator, *arguments)` between two steps of the engine, and count the time as `doing`."""
        return self._loop.call(lambda generator: verb(generator, *arguments), doing)

    def take_busy(self) -> Busy:
        """Return the engine's activities and times since the last call or report."""
        return self._loop.take_busy()

    def start_profile(self) -> None:
        self._loop.call(lambda generator: generator.start_profile())

    def stop_profile(self, folder: str) -> list[ActorProfile]:
        return self._loop.call(lambda generator: generator.stop_profile(folder))
