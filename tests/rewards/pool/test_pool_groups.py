"""Verifiers that see all completions of a prompt at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pool_group_verifiers import compare, group_trouble, rank_by_length
from pool_verifiers import right

from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.verdict import Status

WAIT = 30
VERIFIERS = {"rank": rank_by_length, "compare": compare, "trouble": group_trouble, "right": right}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(VERIFIERS, workers=1, deadline_s=1.0) as made:
        yield made


def judged(pool: VerifierPool, name: str, *completions: str, reference: str = "", **own: list[int]) -> list[Status]:
    futures = pool.submit_group(name, completions, reference, {}, own or None)
    return [future.result(WAIT).status for future in futures]


def test_the_pool_knows_which_verifiers_judge_groups(pool) -> None:
    assert {name for name in VERIFIERS if pool.judges_groups(name)} == {"rank", "compare", "trouble"}
    with pytest.raises(ValueError, match="'right' judges completions one by one"):
        pool.submit_group("right", ["a"], "", {})
    with pytest.raises(ValueError, match="no verifier 'other'"):
        pool.submit_group("other", ["a"], "", {})
    with pytest.raises(ValueError, match="'completion_tokens' has 1 values for 2 completions"):
        pool.submit_group("rank", ["a", "b"], "", {}, {"completion_tokens": [1]})
    assert pool.submit_group("rank", [], "", {}) == []


def test_a_group_is_ranked_and_each_completion_gets_its_own_verdict(pool) -> None:
    before = pool.stats().verifiers["rank"].calls
    futures = pool.submit_group("rank", ["aaa", "a", "aa"], "", {"kind": "x"}, {"completion_tokens": [3, 1, 2]})
    verdicts = [future.result(WAIT) for future in futures]
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.5]
    assert [verdict.status for verdict in verdicts] == [Status.CORRECT, Status.WRONG, Status.SCORED]
    assert pool.stats().verifiers["rank"].calls == before + 3
    alone = pool.submit("rank", "aaa", "", {"completion_tokens": 3}).result(WAIT)
    assert alone.score == 0.0, "a call without a group is a group of one"
    assert judged(pool, "compare", "b", "c", "a") == [Status.WRONG, Status.CORRECT, Status.WRONG]


def test_many_groups_and_single_calls_come_back_in_their_own_futures(pool) -> None:
    groups = [[f"{'x' * (n % 5)}{m}" for m in range(1 + n % 6)] for n in range(60)]
    asked = [pool.submit_group("compare", group, "", {}) for group in groups]
    singles = pool.submit_many([("right", str(n % 3), "1", {}) for n in range(60)])
    for group, futures in zip(groups, asked, strict=True):
        assert [f.result(WAIT).status is Status.CORRECT for f in futures] == [one == max(group) for one in group]
    assert [f.result(WAIT).status is Status.CORRECT for f in singles] == [n % 3 == 1 for n in range(60)]


@pytest.mark.parametrize(
    ("what", "status", "told"),
    [
        ("raise", Status.ERROR, "LookupError: no such group"),
        ("short", Status.ERROR, "returned 1 verdicts for a group of 3"),
        ("hang", Status.TIMEOUT, "undecided after 1 s, at stage 'comparing'"),
    ],
)
def test_a_group_that_fails_fails_for_each_of_its_completions(pool, what, status, told) -> None:
    futures = pool.submit_group("trouble", [what, "b", "c"], "", {})
    verdicts = [future.result(WAIT) for future in futures]
    assert [verdict.status for verdict in verdicts] == [status] * 3 and told in verdicts[2].reason


def test_a_group_whose_worker_died_is_replayed_whole(pool, tmp_path) -> None:
    log = tmp_path / "log"
    assert judged(pool, "trouble", "die once", "b", "c", reference=str(log)) == [Status.CORRECT] * 3
    assert log.read_text().count("call") == 2


def test_what_is_large_crosses_in_pieces(pool) -> None:
    # Together the verdicts of a group are longer than one reply may be.
    assert judged(pool, "trouble", *["y" * 100_000] * 400) == [Status.CORRECT] * 400


def test_groups_and_async_verifiers_of_a_module_with_threads(tmp_path) -> None:
    (tmp_path / "threaded_groups.py").write_text(
        "import asyncio, threading, time\nfrom beside_threads import VALUE\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "def longest(completions, reference):\n    return [len(c) == max(map(len, completions)) for c in completions]\n"
        "async def wait(completion, reference):\n    await asyncio.sleep(0.01)\n    return VALUE\n"
    )
    (tmp_path / "beside_threads.py").write_text("VALUE = True\n")
    specs = [VerifierSpec(name, f"{tmp_path}/threaded_groups.py:{name}") for name in ("longest", "wait")]
    with VerifierPool(specs, workers=1) as pool:
        assert pool.judges_groups("longest") and not pool.judges_groups("wait")
        assert judged(pool, "longest", "a", "aa") == [Status.WRONG, Status.CORRECT]
        waited = pool.submit_many([("wait", "", "", {})] * 5)
        assert [future.result(WAIT).status for future in waited] == [Status.CORRECT] * 5


def test_a_group_that_is_cancelled_in_part_is_judged_for_the_rest() -> None:
    with VerifierPool({"trouble": group_trouble}, workers=1, deadline_s=1.0) as pool:
        pool.submit_group("trouble", ["hang"], "", {})
        one, two = pool.submit_group("trouble", ["a", "b"], "", {})
        assert one.cancel()
        assert two.result(WAIT).status is Status.CORRECT and one.cancelled()
