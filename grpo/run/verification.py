"""A run's verifiers, in a pool that training and evaluation share."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from grpo import config
from grpo.cluster import activity
from grpo.cluster.verifiers.nodes import NodePool
from grpo.config.verifiers import specs_of
from grpo.report.progress import Progress
from grpo.rollout.groups import Verifying, judge_group
from grpo.run.metrics import verifier_metrics
from grpo.types import ActorId, ActorKind, Completion, Phase, Prompt
from rewards.judging import verdicts_wait_s
from rewards.pool import VerifierPool
from rewards.pool.busy_clock import Busy
from rewards.verdict import Verdict


class Verification:
    """The verifiers of a run; `open` starts them."""

    _pool: VerifierPool | NodePool

    def __init__(self, settings: config.TrainConfig) -> None:
        """Build the specifications of the verifiers; no process is started yet."""
        self._settings = settings.verification
        self.specs = specs_of(settings.verifiers, settings.verification)

    def open(self, opened: contextlib.ExitStack, progress: Progress) -> None:
        """Start the workers on this machine; if `verification.per_node` is set, on every node of the Ray cluster."""
        settings = self._settings.model_dump(include={"workers", "deadline_s", "overlap"})
        settings["memory_mib"] = self._settings.memory_mib
        per_node = self._settings.per_node
        with progress.phase(Phase.START, f"starting the verifiers{' on every node' if per_node else ''}"):
            if per_node:
                self._pool = opened.enter_context(NodePool(self.specs, **settings))
            else:
                self._pool = opened.enter_context(VerifierPool(self.specs, **settings))

    def start(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Mapping[str, Future[Verdict]]]:
        """Begin to judge a prompt's completions; return the future verdicts of each completion by verifier name."""
        verdicts = judge_group(self._pool, self.specs, prompt, completions)
        # The pool's threads set the verdicts. In these threads, `current` would return another activity.
        driven = activity.current()
        for future in (future for named in verdicts for future in named.values()):
            future.add_done_callback(lambda _: driven.moved())
        return verdicts

    def verifying(self) -> Verifying:
        """Return a container for groups whose verdicts are pending."""
        return Verifying(self.start, self.specs)

    def wait_s(self, completions: int) -> float:
        """Return how long a pool that does not hang may take to judge this number of completions, in seconds."""
        return verdicts_wait_s(completions, self._settings.deadline_s)

    def take_metrics(self) -> dict[str, float]:
        """Return latencies and cache hits of the verdicts since the last call."""
        return verifier_metrics(self._pool.take_recent())

    def take_busy(self) -> dict[ActorId, Busy]:
        """Return the workers' busy times since the last call."""
        if isinstance(self._pool, NodePool):
            return self._pool.take_busy()
        return {ActorId(ActorKind.VERIFIERS): busy for busy in self._pool.take_busy().values()}
