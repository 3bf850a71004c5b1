"""Give the verdicts of the pool's calls to the callers."""

from __future__ import annotations

from rewards.pool.jobs import PoolJob
from rewards.pool.stats import Recorder
from rewards.verdict import Verdict


class Results:
    """Resolves futures and counts verdicts; used by the supervising thread alone."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def finish(self, job: PoolJob, verdicts: list[Verdict], seconds: float, hit: bool) -> None:
        """Resolve the futures of a call.

        Args:
            job: the call.
            verdicts: a verdict for each completion.
            seconds: time that the call took.
            hit: whether the verifier's cache had the answer.
        """
        if not job.start():
            return
        for future, verdict in zip(job.futures, verdicts, strict=True):
            if not future.done():
                self._recorder.verdict(job.name, verdict.status, seconds, hit)
                future.set_result(verdict)

    def fail(self, job: PoolJob, verdict: Verdict, seconds: float = 0.0) -> None:
        """Resolve all futures of a call with the same verdict, which reports a failure."""
        self.finish(job, [verdict] * len(job.completions), seconds, False)
