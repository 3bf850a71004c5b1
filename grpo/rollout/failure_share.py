"""Verdicts that are `timeout` or `error`: how many a run bears before it stops."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass, field

from grpo.types import Group
from grpo.visible import one_line

# Verdicts of one verifier by which it is judged alone: fewer of several steps are put together, as one bad row of a few
# says little of a verifier.
LEAST_VERDICTS = 50


@dataclass(slots=True)
class _Count:
    """Verdicts, and why some of them failed."""

    verdicts: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)


class FailureShare:
    """Stops a run whose verifiers fail too often to trust what is learned."""

    def __init__(self, max_share: float) -> None:
        """Nothing is counted yet; `max_share` is that of `verification`."""
        self._max_share = max_share
        self._of: dict[str, _Count] = {}

    def check(self, groups: Iterable[Group]) -> None:
        """Judge a step's verdicts, all together, and each verifier's with those that it gave since it was last judged.

        Args:
            groups: of the step.

        Raises:
            RuntimeError: more than the share of them are `timeout` or `error`; the commonest reasons are told.
        """
        together = _Count()
        for group in groups:
            for rollout in group.rollouts:
                for name, verdict in rollout.verdicts.items():
                    for count in (together, self._of.setdefault(name, _Count())):
                        count.verdicts += 1
                        if verdict.status.failed:
                            count.reasons[f"{name}: {verdict.status}: {one_line(verdict.reason)}"] += 1
        self._judge(together, "")
        for name, count in list(self._of.items()):
            if count.verdicts >= LEAST_VERDICTS:
                self._judge(count, f" of the verifier {name!r}")
                del self._of[name]

    def _judge(self, count: _Count, whose: str) -> None:
        failed = count.reasons.total()
        if failed <= self._max_share * count.verdicts:
            return
        reasons = "; ".join(f"{number} x {reason}" for reason, number in count.reasons.most_common(3))
        raise RuntimeError(
            f"{failed} of {count.verdicts} verdicts{whose} failed, above verification.max_failure_share="
            f"{self._max_share}: {reasons}. Mend the verifier, raise verification.deadline_s, or allow more failures"
        )
