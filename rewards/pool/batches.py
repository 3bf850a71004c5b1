"""Choose the calls that a worker gets in one message."""

from __future__ import annotations

from collections import deque

from rewards.pool.jobs import PoolJob
from rewards.pool.stats import Recorder

# A batch is long enough to hide the round trip, and short enough to spread calls evenly.
_BATCH_S, _BATCH_JOBS, _BATCH_CHARACTERS = 0.004, 64, 1 << 18


def next_batch(queue: deque[PoolJob], workers: int, recorder: Recorder) -> list[PoolJob]:
    """Take calls from the queue, at least one: by the mean times of the verifiers, they need about `_BATCH_S` seconds.

    Calls that their caller has cancelled are dropped.
    """
    jobs: list[PoolJob] = []
    seconds, characters = 0.0, 0
    share = len(queue) // (2 * workers) + 1
    while queue and len(jobs) < min(_BATCH_JOBS, share):
        job = queue.popleft()
        if not job.start():
            continue
        jobs.append(job)
        seconds += recorder.mean_s(job.name)
        characters += job.characters
        if seconds > _BATCH_S or characters > _BATCH_CHARACTERS:
            break
    return jobs
