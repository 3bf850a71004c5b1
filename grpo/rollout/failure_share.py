"""Limit the share of verdicts that are `timeout` or `error`. If the share is above the limit, stop the run."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass, field

from grpo.types import Group
from grpo.visible import one_line

# Number of verdicts needed to judge a single verifier. If a verifier has few verdicts, one bad row could raise the
# share above the limit. So the verdicts of several steps are counted together until this number is reached.
LEAST_VERDICTS = 50


@dataclass(slots=True)
class _Count:
    """The number of verdicts, and the number of failed verdicts by the reason of the failure."""

    verdicts: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)


class FailureShare:
    """Stops a run whose verifiers fail so often that the rewards cannot be trusted."""

    def __init__(self, max_share: float) -> None:
        """Start without counts; `max_share` is `verification.max_failure_share`."""
        self._max_share = max_share
        self._of: dict[str, _Count] = {}

    def check(self, groups: Iterable[Group]) -> None:
        """Check the share of failures among all verdicts of a step, and among the verdicts of each verifier.

        A verifier is checked only once it has `LEAST_VERDICTS` verdicts since its last check.

        Args:
            groups: groups of the step.

        Raises:
            RuntimeError: the share of `timeout` and `error` is too large; the message lists the most common reasons.
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
            f"{self._max_share}: {reasons}. Repair the verifier, raise verification.deadline_s, or allow more failures"
        )
