"""A verifier pool in a Ray process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from grpo.cluster.session import session_logs
from grpo.report.log_file import LogPlace
from grpo.report.logs import logs_failures, open_actor_log
from grpo.types import ActorId, ActorKind
from rewards.build import VerifierSpec
from rewards.pool.busy_clock import Busy
from rewards.pool.pool import Call, VerifierPool
from rewards.pool.stats import Tally
from rewards.verdict import Verdict


@logs_failures
class VerifierActor:
    """A verifier pool in a separate Ray process."""

    def __repr__(self) -> str:
        return str(ActorId(ActorKind.VERIFIERS, ray.get_runtime_context().get_node_id()[:12]))

    def start(
        self, specs: Sequence[VerifierSpec], folder: str, settings: Mapping[str, Any], logs: LogPlace | None = None
    ) -> frozenset[str]:
        """Build the verifiers. If the node has the driver's folder, look for the user's files there.

        Returns:
            The names of the verifiers that judge groups.
        """
        open_actor_log(logs, repr(self), session_logs)
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path.append(folder)
        self._pool = VerifierPool(specs, **settings)
        return frozenset(spec.name for spec in specs if self._pool.judges_groups(spec.name))

    async def verify(self, calls: Sequence[Call]) -> list[Verdict]:
        """Return a verdict for each call `(name, completion, reference, prompt)`, in order; `error` if a call fails."""
        futures = [asyncio.wrap_future(future) for future in self._pool.submit_many(calls)]
        return list(await asyncio.gather(*futures))

    async def verify_group(
        self,
        name: str,
        completions: Sequence[str],
        reference: Any,
        prompt: Mapping[str, Any],
        lists: Mapping[str, Sequence[Any]] | None,
    ) -> list[Verdict]:
        """Return a verdict for each completion of a group, in order. If the call fails, every verdict is `error`."""
        futures = self._pool.submit_group(name, completions, reference, prompt, lists)
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    async def take_recent(self) -> tuple[dict[str, Tally], Busy]:
        """Return this node's counts since the last call, by verifier, and the busy times of its workers."""
        return self._pool.take_recent(), self._pool.take_busy()["verifiers"]
