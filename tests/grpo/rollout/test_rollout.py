"""Collecting groups: they come as they finish, and nothing that fails passes for a score."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.rollout.failure_share import LEAST_VERDICTS, FailureShare
from grpo.rollout.group_state import group_from_state, group_state
from grpo.rollout.groups import collect, reward_tensors, seed_of, with_refills
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict
from rewards.build import VerifierSpec
from rewards.verdict import Status, Verdict

ANSWER = (VerifierSpec("answer", "numeric"),)
BOTH = (*ANSWER, VerifierSpec("form", "format", weight=0.5))


def make_prompt(number: int) -> Prompt:
    return Prompt(f"rows:{number}", f"{number}?", (number + 1,), str(number), {})


def make_completion(text: str) -> Completion:
    return Completion((1, 2), (-0.5, -0.5), text, "stop", (VersionSpan(0, 2, 0),))


def decided(value: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(value)
    return future


def score(prompt: Prompt, completions: Sequence[Completion]) -> list[Mapping[str, Future[Verdict]]]:
    """`correct` where the completion is the reference."""
    right = [completion.text == prompt.reference for completion in completions]
    return [{"answer": decided(verdict.correct() if one else verdict.wrong())} for one in right]


def test_groups_are_made_of_their_own_prompt_and_completions() -> None:
    prompts = [make_prompt(0), make_prompt(1)]

    def generate(asked: Sequence[Prompt]) -> Iterator[tuple[int, list[Completion]]]:
        assert asked == prompts
        yield 1, [make_completion("1"), make_completion("9")]
        yield 0, [make_completion("8"), make_completion("0")]

    groups = dict(collect(prompts, generate, score, ANSWER, verdict_wait_s=1))
    assert [groups[index].prompt for index in range(2)] == prompts
    assert [[rollout.reward for rollout in groups[index].rollouts] for index in range(2)] == [[0.0, 1.0], [1.0, 0.0]]
    assert [[rollout.correct for rollout in groups[index].rollouts] for index in range(2)] == [
        [False, True],
        [True, False],
    ]


def test_groups_come_as_they_finish_and_are_verified_beside_the_sampling() -> None:
    """Events in order: a later group whose verdict is there overtakes an earlier one that waits for its own."""
    events: list[str] = []
    slow: Future[Verdict] = Future()

    def generate(asked: Sequence[Prompt]) -> Iterator[tuple[int, list[Completion]]]:
        for index in range(len(asked)):
            events.append(f"sampled {index}")
            yield index, [make_completion("a")]
            if index == 1:
                slow.set_result(verdict.correct())

    def verify(prompt: Prompt, completions: Sequence[Completion]) -> list[Mapping[str, Future[Verdict]]]:
        events.append(f"verifying {prompt.reference}")
        return [{"answer": slow if prompt.reference == "0" else decided(verdict.wrong())} for _ in completions]

    for index, _ in collect([make_prompt(n) for n in range(3)], generate, verify, ANSWER, verdict_wait_s=1):
        events.append(f"group {index}")
    assert events == [
        "sampled 0", "verifying 0",
        "sampled 1", "verifying 1", "group 1",
        "sampled 2", "verifying 2", "group 0", "group 2",
    ]  # fmt: skip


def test_verdicts_that_are_still_out_after_the_sampling_are_waited_for() -> None:
    late: Future[Verdict] = Future()

    def generate(asked: Sequence[Prompt]) -> Iterator[tuple[int, list[Completion]]]:
        yield 0, [make_completion("a")]
        # Decided when the driver has stopped sampling: nothing but waiting can see it.
        late.set_running_or_notify_cancel()

    found = collect([make_prompt(0)], generate, lambda *_: [{"answer": late}], ANSWER, verdict_wait_s=30)
    timer = threading.Timer(0.05, late.set_result, [verdict.correct()])
    timer.start()
    assert next(found)[1].rollouts[0].reward == 1.0
    timer.join()


def test_a_prompt_without_a_group_is_told() -> None:
    def generate(asked: Sequence[Prompt]) -> Iterable[tuple[int, list[Completion]]]:
        return [(1, [make_completion("a")])]

    with pytest.raises(RuntimeError, match="2 of 3 prompts got no group, the first is 0"):
        list(collect([make_prompt(n) for n in range(3)], generate, score, ANSWER, verdict_wait_s=1))


def test_a_prompt_with_two_groups_is_told() -> None:
    def generate(asked: Sequence[Prompt]) -> Iterable[tuple[int, list[Completion]]]:
        return [(0, [make_completion("a")]), (0, [make_completion("a")])]

    with pytest.raises(RuntimeError, match="prompt 0 got a second group"):
        list(collect([make_prompt(0)], generate, score, ANSWER, verdict_wait_s=1))


def test_a_verdict_that_never_comes_ends_the_wait() -> None:
    def generate(asked: Sequence[Prompt]) -> Iterable[tuple[int, list[Completion]]]:
        return [(0, [make_completion("a"), make_completion("b")])]

    def verify(prompt: Prompt, completions: Sequence[Completion]) -> list[Mapping[str, Future[Verdict]]]:
        return [{"answer": Future() if one.text == "b" else decided(verdict.wrong())} for one in completions]

    with pytest.raises(TimeoutError, match="1 verdicts on prompt rows:0 did not come"):
        list(collect([make_prompt(0)], generate, verify, ANSWER, verdict_wait_s=0.01))


def test_a_failed_verdict_leaves_no_reward() -> None:
    said = {"a": {"answer": verdict.timeout("slow"), "form": verdict.correct()},
            "b": {"answer": verdict.correct(), "form": verdict.error("broke")},
            "c": {"answer": verdict.correct(), "form": verdict.wrong()}}  # fmt: skip

    def generate(asked: Sequence[Prompt]) -> Iterable[tuple[int, list[Completion]]]:
        return [(0, [make_completion(text) for text in said])]

    def verify(prompt: Prompt, completions: Sequence[Completion]) -> list[Mapping[str, Future[Verdict]]]:
        return [{name: decided(value) for name, value in said[one.text].items()} for one in completions]

    ((_, group),) = collect([make_prompt(0)], generate, verify, BOTH, verdict_wait_s=1)
    assert [rollout.reward for rollout in group.rollouts] == [None, None, 1.0]
    assert [rollout.verdicts["answer"].status for rollout in group.rollouts] == [
        Status.TIMEOUT,
        Status.CORRECT,
        Status.CORRECT,
    ]


def make_group(*rewards: float | None) -> Group:
    rollouts = tuple(
        Rollout(
            make_completion("x"),
            {"answer": verdict.timeout("slow") if reward is None else verdict.correct(score=reward)},
            reward,
        )
        for reward in rewards
    )
    return Group(make_prompt(0), rollouts)


def test_rewards_as_tensors() -> None:
    rewards_PG, valid_PG = reward_tensors([make_group(1.0, None, 0.5), make_group(0.0, 2.0)])
    assert rewards_PG.tolist() == [[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]]
    assert valid_PG.tolist() == [[True, False, True], [True, True, False]]
    assert rewards_PG.dtype == torch.float32 and valid_PG.dtype == torch.bool


def test_failures_up_to_the_share_pass_and_beyond_it_stop_the_run() -> None:
    groups = [make_group(1.0, None, 0.0, 0.0), make_group(0.0, 0.0, 1.0, 1.0)]
    FailureShare(1 / 8).check(groups)
    with pytest.raises(RuntimeError) as caught:
        FailureShare(0.1).check(groups)
    message = str(caught.value)
    assert "1 of 8 verdicts failed" in message and "verification.max_failure_share=0.1" in message
    assert "1 x answer: timeout: slow" in message and "verification.deadline_s" in message
    FailureShare(0.0).check([make_group(0.0, 0.0)])


def test_the_commonest_reasons_are_told_first() -> None:
    def failing(*reasons: str) -> Group:
        return Group(
            make_prompt(0),
            tuple(Rollout(make_completion("x"), {"answer": verdict.error(reason)}, None) for reason in reasons),
        )

    with pytest.raises(RuntimeError, match=r"3 x answer: error: b; 2 x answer: error: c; 1 x answer: error: a\."):
        FailureShare(0.5).check([failing("a", "b", "c", "b"), failing("b", "c")])


def judged_by(name: str, failed: int, passed: int) -> Group:
    verdicts = [verdict.error("broken")] * failed + [verdict.correct()] * passed
    return Group(make_prompt(0), tuple(Rollout(make_completion("x"), {name: one}, one.score) for one in verdicts))


def test_a_verifier_of_few_rows_that_always_fails_stops_the_run() -> None:
    failures, steps = FailureShare(0.05), 0
    with pytest.raises(RuntimeError) as caught:
        for _ in range(100):
            # 10 of 256 verdicts: never too many of all.
            failures.check([judged_by("usual", 0, 246), judged_by("rare", 10, 0)])
            steps += 1
    assert steps == LEAST_VERDICTS // 10 - 1
    assert "50 of 50 verdicts of the verifier 'rare' failed" in str(caught.value)


def test_one_bad_row_of_few_does_not_stop_the_run() -> None:
    failures = FailureShare(0.05)
    for step in range(40):
        # 2 of the 12 of a step are too many, of the last 52 they are not.
        failures.check([judged_by("usual", 0, 246), judged_by("rare", 2 if step % 5 == 0 else 0, 10)])


def refilled(script: list[list[Group]], rounds: int) -> tuple[list[Group], list[tuple[int, int]]]:
    """Groups come as scripted, round by round; also told: which rounds were asked for how many."""
    asked: list[tuple[int, int]] = []

    def sample(count: int, number: int) -> list[Group]:
        asked.append((number, count))
        assert count == len(script[number])
        return script[number]

    return with_refills(len(script[0]), sample, rounds), asked


def test_groups_without_variance_are_replaced_and_none_is_lost() -> None:
    mixed, same, failed = make_group(1.0, 0.0), make_group(1.0, 1.0), make_group(1.0, None)
    script = [[mixed, same, failed, mixed], [same, mixed], [mixed]]
    found, asked = refilled(script, rounds=3)
    # Two were missing, then one; with four of variance nobody is asked again.
    assert asked == [(0, 4), (1, 2), (2, 1)]
    assert found == [mixed, same, failed, mixed, same, mixed, mixed]


def test_refilling_ends_after_its_rounds() -> None:
    same = make_group(0.0, 0.0)
    found, asked = refilled([[same, same], [same, same], [same, same]], rounds=1)
    assert asked == [(0, 2), (1, 2)] and len(found) == 4
    assert refilled([[same, same]], rounds=0) == ([same, same], [(0, 2)])


@given(st.integers(0, 3), st.integers(0, 50), st.integers(0, 50))
def test_seeds_are_stable_and_fit_the_engine(run_seed: int, step: int, number: int) -> None:
    seed = seed_of(run_seed, step, make_prompt(number))
    assert seed == seed_of(run_seed, step, make_prompt(number))
    assert 0 <= seed < 2**63 - 4096


def test_seeds_do_not_depend_on_the_process() -> None:
    # The same today, tomorrow and on another machine: a resumed run samples what the first would have.
    assert seed_of(0, 0, make_prompt(0)) == int.from_bytes(bytes.fromhex("2a3b45ceb693"), "big")


def test_seeds_are_distinct_over_runs_steps_and_prompts() -> None:
    seeds = [seed_of(run, step, make_prompt(n)) for run in range(3) for step in range(12) for n in range(50)]
    assert len(set(seeds)) == len(seeds)
    # A prompt that comes again in a refill of the same step is sampled anew.
    assert seed_of(0, 0, make_prompt(0), 1) not in seeds
    # Sample i of a group uses seed + i: neighbours must not share them.
    ordered = sorted(seeds)
    assert min(b - a for a, b in itertools.pairwise(ordered)) > 64


def test_a_group_comes_back_from_its_plain_data() -> None:
    known = {prompt.id: prompt for prompt in (make_prompt(0), make_prompt(1))}
    spans = (VersionSpan(0, 1, 3), VersionSpan(1, 3, 4))
    rollouts = (
        Rollout(make_completion("1"), {"answer": verdict.correct("equal", tags=0.5)}, 1.0),
        Rollout(
            Completion((7, 8, 9), (-0.1, -0.2, -0.3), "789", "length", spans),
            {"answer": verdict.timeout("slow"), "form": verdict.wrong("odd")},
            None,
        ),
        Rollout(make_completion("2"), {"answer": verdict.scored(0.25, "near")}, 0.25),
    )
    group = Group(known["rows:1"], rollouts)
    state = group_state(group)
    assert group_from_state(state, known) == group
    assert state["token_ids"].tolist() == [1, 2, 7, 8, 9, 1, 2] and state["token_ids"].dtype == torch.int64
    assert state["logprobs"].dtype == torch.float64 and state["prompt"] == "rows:1"
    with pytest.raises(ValueError, match="prompt rows:1, which the data no longer have"):
        group_from_state(state, {"rows:0": known["rows:0"]})
