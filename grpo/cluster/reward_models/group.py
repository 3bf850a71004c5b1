"""Reward models beside a run: each has a process of its own, which is started again if it dies or hangs.

The completions of all prompts that wait for a score go to the model together.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray

from grpo.cluster.reward_models.actor import RewardModelActor, ScorerSetup
from grpo.cluster.waiting import wait_for
from grpo.policy.score_scale import ScoreScale
from grpo.report.logs import present_place
from rewards.pool.stats import Tally
from rewards.verdict import Verdict, error, scored, timeout

logger = logging.getLogger(__name__)

# How often the process may fail on the same batch, and how often in a row, before its completions have no score.
_RETRIES = 2


@dataclass(eq=False)
class _Waiting:
    """A completion that waits for its score."""

    token_ids: tuple[int, ...]
    future: Future[Verdict]
    since: float

    def finish(self, verdict: Verdict) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(verdict)


class RewardModelProcess:
    """The driver's end of a reward model.

    If the process dies or a batch passes its deadline, the process is started again, and the batch is sent again. If
    this fails too often, the completions get the verdicts `error` or `timeout`: a failure is never a score.
    """

    def __init__(
        self,
        setup: ScorerSetup,
        *,
        scale: ScoreScale | None,
        end_token: int,
        end_tokens: frozenset[int],
        deadline_s: float,
        start_s: float,
    ) -> None:
        """Start the process and wait until the model is loaded.

        Args:
            setup: settings of the process.
            scale: scale that normalises the scores; None for the scores as they are.
            end_token: token that ended each answer in the model's training.
            end_tokens: tokens that may end a completion.
            deadline_s: longest time of a batch, in seconds.
            start_s: longest time until the model is loaded, in seconds.

        Raises:
            ValueError: the model cannot be loaded.
            TimeoutError: the model was not loaded in time, or no device is free for it.
        """
        self.name = setup.name
        self._setup, self._scale = setup, scale
        self._end_token, self._end_tokens = end_token, end_tokens
        self._deadline_s, self._start_s = deadline_s, start_s
        self._queue: queue.SimpleQueue[list[_Waiting] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._tally, self._closed, self._failures = Tally(), False, 0
        self.restarts = 0
        self._actor: Any = self._started()
        self._thread = threading.Thread(target=self._run, name=f"reward-model-{setup.name}", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Future[Verdict]]:
        """Queue the completions of a prompt, as token ids; return the future of each verdict, in order."""
        now = time.monotonic()
        waiting = [_Waiting((*prompt, *self._whole(ids)), Future(), now) for ids in completions]
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the reward model {self.name!r} is closed")
            self._queue.put(waiting)
        return [each.future for each in waiting]

    def _whole(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the completion with the end token of the training, also if a limit of tokens ended it."""
        body = ids[:-1] if ids[-1] in self._end_tokens else ids
        return (*body, self._end_token)

    def take_recent(self) -> Tally:
        """Return the counts since the last call."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        return tally

    def close(self) -> None:
        """Kill the process; unfinished completions get the verdict `error`. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._queue.put(None)
        ray.kill(self._actor)
        self._thread.join()

    def __enter__(self) -> RewardModelProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _started(self) -> Any:
        remote: Any = ray.remote(RewardModelActor)
        actor = remote.options(
            # As the verifiers, the model uses cores that nobody else uses at the moment. A GPU is its own.
            num_cpus=0,
            num_gpus=1 if self._setup.device == "cuda" else 0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._setup.threads)}},
        ).remote(self._setup, present_place())
        wait_for([actor.ready.remote()], self._start_s, f"the reward model {self.name!r} to load")
        return actor

    def _run(self) -> None:
        while (waiting := self._queue.get()) is not None:
            batch = list(waiting)
            ended = False
            while not self._queue.empty():
                more = self._queue.get()
                ended = ended or more is None
                batch += more or []
            self._judge(batch)
            if ended:
                break
        while not self._queue.empty():
            for each in self._queue.get() or []:
                each.finish(error(f"the reward model {self.name!r} was closed before this verdict"))

    def _judge(self, batch: Sequence[_Waiting]) -> None:
        """Give each completion of the batch its verdict."""
        reason: Callable[[str], Verdict] = error
        said = "it had failed before"
        for attempt in range(_RETRIES + 1):
            if self._closed or self._failures > _RETRIES:
                break
            try:
                if attempt:
                    self._restart()
                reference = self._actor.score.remote([each.token_ids for each in batch])
                (scores,) = wait_for([reference], self._deadline_s, f"scores of the reward model {self.name!r}")
            except TimeoutError as failure:
                reason, said = timeout, str(failure)
            except (RuntimeError, ValueError, MemoryError, ray.exceptions.RayError) as failure:
                # A process that died, and an error of the model itself.
                reason, said = error, str(failure)
            else:
                self._failures = 0
                self._finish(batch, [self._verdict(score) for score in scores])
                return
            self._failures += 1
            logger.warning("the reward model %s failed: %s", self.name, said.splitlines()[0])
        first = said.splitlines()[0]
        self._finish(batch, [reason(f"the reward model {self.name!r} gave no score: {first}")] * len(batch))

    def _restart(self) -> None:
        self.restarts += 1
        ray.kill(self._actor)
        self._actor = self._started()

    def _verdict(self, score: float) -> Verdict:
        if not math.isfinite(score):
            return error(f"the reward model {self.name!r} gave a score that is not finite: {score}")
        if self._scale is None:
            return scored(score)
        return scored((score - self._scale.mean) / self._scale.deviation, f"score {score:.4g} before normalisation")

    def _finish(self, batch: Sequence[_Waiting], verdicts: Sequence[Verdict]) -> None:
        now = time.monotonic()
        with self._lock:
            for each, verdict in zip(batch, verdicts, strict=True):
                self._tally.statuses[verdict.status] += 1
                self._tally.seconds.append(now - each.since)
        for each, verdict in zip(batch, verdicts, strict=True):
            each.finish(verdict)
