from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hostile_answers import hostile_completions, hostile_pairs
from labelled_pairs import Row, read_fourth, read_pairs, read_second, read_third

from rewards.build import build_verifier
from rewards.verdict import Status, Verdict
from rewards.verifiers.math import Math

PAIRS = list(read_pairs())
SECOND = list(read_second())
THIRD = list(read_third())
VERIFY = Math()


@pytest.mark.parametrize("row", list(read_fourth()), ids=lambda row: row.kind)
def test_the_fourth_set(row: Row) -> None:
    verdict = build_verifier(row.verifier, row.options)(row.answer, row.gold, row.prompt)
    assert (verdict.status is Status.CORRECT) == row.expected and not verdict.status.failed, (row, verdict)


def verdicts() -> list[Verdict]:
    return [Math()(pair.completion, pair.gold, {}) for pair in PAIRS[::7]]


def test_the_corpus_is_balanced_and_large() -> None:
    equal = sum(pair.equal for pair in PAIRS)
    assert len(PAIRS) >= 600
    assert 0.45 < equal / len(PAIRS) < 0.55
    assert 0.28 < sum(pair.held_back for pair in PAIRS) / len(PAIRS) < 0.38
    assert len({pair.kind for pair in PAIRS}) >= 30


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not pair.held_back], ids=lambda pair: pair.kind)
def test_tuned_pairs(pair) -> None:
    verdict = VERIFY(pair.completion, pair.gold, {})
    assert (verdict.status is Status.CORRECT) == pair.equal, (pair.gold, pair.answer, verdict)


def test_accuracy_and_false_positives_over_the_whole_corpus() -> None:
    outcomes = Counter((VERIFY(p.completion, p.gold, {}).status is Status.CORRECT, p.equal) for p in PAIRS)
    right = outcomes[True, True] + outcomes[False, False]
    assert right / len(PAIRS) >= 0.97
    assert outcomes[True, False] / (outcomes[True, False] + outcomes[False, False]) <= 0.005


def test_accuracy_on_the_pairs_held_back() -> None:
    held = [pair for pair in PAIRS if pair.held_back]
    right = sum((VERIFY(p.completion, p.gold, {}).status is Status.CORRECT) == p.equal for p in held)
    assert right / len(held) >= 0.97


def test_the_second_set_is_balanced_and_of_all_kinds() -> None:
    assert len(SECOND) >= 150
    assert 0.45 < sum(pair.equal for pair in SECOND) / len(SECOND) < 0.55
    assert {pair.kind for pair in SECOND} == {pair.kind for pair in PAIRS}
    assert not {(pair.gold, pair.answer) for pair in SECOND} & {(pair.gold, pair.answer) for pair in PAIRS}


def test_accuracy_and_false_positives_on_the_second_set() -> None:
    outcomes = Counter((VERIFY(p.completion, p.gold, {}).status is Status.CORRECT, p.equal) for p in SECOND)
    assert (outcomes[True, True] + outcomes[False, False]) / len(SECOND) >= 0.97
    assert outcomes[True, False] / (outcomes[True, False] + outcomes[False, False]) <= 0.005


def test_accuracy_and_false_positives_on_a_reviewers_pairs() -> None:
    outcomes = Counter((VERIFY(p.completion, p.gold, {}).status is Status.CORRECT, p.equal) for p in THIRD)
    assert len(THIRD) >= 450 and outcomes[False, False] >= 150
    assert (outcomes[True, True] + outcomes[False, False]) / len(THIRD) >= 0.99
    assert outcomes[True, False] == 0


def test_the_same_verdicts_in_a_thread_and_in_a_loop() -> None:
    expected = verdicts()
    from_threads: list[list[Verdict]] = []
    threads = [threading.Thread(target=lambda: from_threads.append(verdicts())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def in_loop() -> list[Verdict]:
        return verdicts()

    assert all(found == expected for found in from_threads) and len(from_threads) == 4
    assert asyncio.run(in_loop()) == expected


@pytest.mark.parametrize("name", hostile_pairs())
def test_hostile_answers_are_refused_in_time(name) -> None:
    for gold, answer in (hostile_pairs()[name], hostile_pairs()[name][::-1]):
        begun = time.process_time()
        verdict = VERIFY(f"\\boxed{{{answer}}}", gold, {})
        assert time.process_time() - begun < 1.0
        assert verdict.status is not Status.CORRECT
        assert verdict.status is not Status.TIMEOUT or "undecided at" in verdict.reason
    assert not Path("/tmp/verigrpo-was-here").exists()


@pytest.mark.parametrize("name", hostile_completions())
def test_hostile_completions_are_searched_in_time(name) -> None:
    gold, completion = hostile_completions()[name]
    begun = time.process_time()
    verdict = VERIFY(completion, gold, {})
    assert time.process_time() - begun < 1.0
    assert verdict.status in (Status.WRONG, Status.UNPARSEABLE)


def test_the_verdict_does_not_hang_on_the_order_of_calls() -> None:
    fresh, used = Math(), Math()
    for pair in PAIRS[::5]:
        used(pair.completion, pair.gold, {})
    for pair in reversed(PAIRS[::5]):
        assert used(pair.completion, pair.gold, {}) == fresh(pair.completion, pair.gold, {})
