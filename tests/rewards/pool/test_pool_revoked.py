"""A worker that is slow to begin, or dead, on a loaded machine: the call that it was thought to be at is not lost."""

import os
import signal
import time
from collections.abc import Callable

from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.pool.worker_handle import Busy
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


def test_a_call_that_never_reached_its_worker_has_no_part_in_the_worker_s_death() -> None:
    with VerifierPool([VerifierSpec("answer", "numeric")], workers=1, replays=0) as pool:
        assert pool.submit("answer", "<answer>1</answer>", "1", {}).result(timeout=10).status is Status.CORRECT
        (worker,) = pool._supervisor.calls.workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        future = pool.submit("answer", "<answer>2</answer>", "2", {})
        while not isinstance(worker.state, Busy):
            time.sleep(0.001)
        os.kill(worker.process.pid, signal.SIGKILL)
        assert future.result(timeout=10).status is Status.CORRECT
        assert pool.stats().died == 1 and pool.stats().replayed == 0


class EndsItsReader:
    """A reference answer that ends each process that reads it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (3,)


def test_a_call_that_its_worker_cannot_even_read_is_given_up() -> None:
    """Such a worker got the call, so the call counts as tried, and the pool does not try for ever."""
    with VerifierPool([VerifierSpec("answer", "numeric")], workers=1, replays=1) as pool:
        verdict = pool.submit("answer", "<answer>1</answer>", EndsItsReader(), {}).result(timeout=20)
        assert verdict.status is Status.ERROR and "died 2 times" in verdict.reason
