"""Groups under way: what a step waits for, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from documented_metrics import is_documented
from test_rollout import ANSWER, decided, make_completion, make_prompt

from grpo.rollout import collector
from grpo.rollout.collector import Collector, IdleClock
from grpo.rollout.groups import Verifying
from grpo.rollout.staleness import OpenGroups
from grpo.run.stopwatch import Stopwatch
from grpo.types import Completion, Finished, Prompt, Request
from rewards import verdict
from rewards.verdict import Verdict


@dataclass
class ScriptedStream:
    """Hands out what the script says, call by call; a call that would wait beyond it fails."""

    script: list[list[int]]
    submitted: list[int] = field(default_factory=list)
    unfinished: int = 0

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        assert [request.token_ids for request in requests] == [prompt.token_ids for prompt in prompts]
        self.submitted += [request.index for request in requests]
        self.unfinished += len(requests)

    def finished(self, wait: bool = True) -> Finished:
        if not wait and not self.script:
            return []
        found = self.script.pop(0)
        self.unfinished -= len(found)
        return [(index, (make_completion(str(index)),)) for index in found]


@dataclass
class Verdicts:
    """Given at once, but for those of the prompts named."""

    late: Mapping[str, Future[Verdict]] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)

    def __call__(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Mapping[str, Future[Verdict]]]:
        self.begun.append(prompt.reference)
        return [{"answer": self.late.get(prompt.reference) or decided(verdict.wrong())} for _ in completions]


def collecting(script: list[list[int]], verdicts: Verdicts, lag: int = 1) -> tuple[Collector, ScriptedStream]:
    stream = ScriptedStream(script)
    numbers = iter(range(100))
    collected = Collector(
        stream,
        Verifying(verdicts, ANSWER),
        OpenGroups(2, lag, steps=9),
        lambda count: [make_prompt(next(numbers)) for _ in range(count)],
        run_seed=0,
        verdict_wait_s=0.2,
    )
    collected.fill()
    return collected, stream


def test_a_step_takes_what_has_verdicts_and_leaves_the_rest_to_later() -> None:
    """Two of four are enough: it waits neither for the completions of the third nor for the verdict of the fourth."""
    late: Future[Verdict] = Future()
    verdicts = Verdicts({"3": late})
    found, stream = collecting([[3], [1, 0]], verdicts)
    assert stream.submitted == [0, 1, 2, 3]
    groups = found.take(2, Stopwatch())
    assert [group.prompt.reference for group in groups] == ["0", "1"]
    assert verdicts.begun == ["3", "1", "0"]
    metrics = found.metrics()
    assert [name for name in metrics if not is_documented(name)] == []
    assert metrics["rollout/groups_in_flight"] == 2 and metrics["rollout/groups_buffered"] == 0
    # Between steps: what is sampled meanwhile is verified, and what is verified is kept.
    stream.script = [[2]]
    late.set_result(verdict.correct())
    found.drain()
    assert verdicts.begun[-1] == "2"
    assert found.metrics()["rollout/groups_buffered"] == 2


def test_verdicts_are_waited_for_beside_the_sampling_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "POLL_S", 0.01)
    found, _ = collecting([[0], [], [], [1]], Verdicts({"0": Future()}), lag=0)
    watch = Stopwatch()
    with pytest.raises(TimeoutError, match="1 verdicts on prompt rows:0 did not come within 0 s"):
        found.take(2, watch)
    watch.start(None)
    assert watch.metrics()["time/verify_s"] >= 0.2


def test_idle_time_is_that_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("grpo.rollout.collector.time.monotonic", lambda: now)
    clock = IdleClock()
    for later, unfinished in ((1.0, 4), (2.0, 2), (1.0, 0), (3.0, 0), (1.0, 5)):
        now += later
        clock.note(unfinished)
    now += 2.0
    # Idle in the first second, and in the three and one between the last answer and the next request.
    assert clock.take_share() == pytest.approx(5 / 10)
    now += 4.0
    assert clock.take_share() == 0.0
    clock.note(0)
    now += 1.0
    assert clock.take_share() == 1.0
