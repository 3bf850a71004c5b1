"""A worker that is slow to begin, on a loaded machine, must not lose the call that it was thought to be at."""

import os
import signal
import time

from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.verdict import Status


def test_calls_revoked_before_the_worker_began_are_given_out_again() -> None:
    with VerifierPool([VerifierSpec("answer", "numeric")], workers=1, deadline_s=3.0, spares=0) as pool:
        assert pool.submit("answer", "<answer>1</answer>", "1", {}).result(timeout=10).status is Status.CORRECT
        (worker,) = pool._supervisor.calls.workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        futures = pool.submit_many([("answer", f"<answer>{n}</answer>", str(n), {}) for n in range(20)])
        time.sleep(0.3)  # far beyond the time after which waiting calls are taken back
        os.kill(worker.process.pid, signal.SIGCONT)
        verdicts = [future.result(timeout=10) for future in futures]
        assert [verdict.status for verdict in verdicts] == [Status.CORRECT] * 20
        assert time.monotonic() - begun < 2.5, "a call waited for its deadline"
