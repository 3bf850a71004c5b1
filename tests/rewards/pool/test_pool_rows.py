"""Rows that no other process can be given: their calls are errors, and the pool goes on."""

from __future__ import annotations

from typing import Any

import pytest
from pool_group_verifiers import compare, wait
from pool_verifiers import right

from rewards.pool import VerifierPool
from rewards.verdict import Status

WAIT = 30


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("name", ["right", "wait"])
def test_a_row_that_cannot_be_sent_is_an_error_that_names_the_column(name: str) -> None:
    with VerifierPool({"right": right, "wait": wait}, workers=1, overlap=2) as pool:
        deep, function = {"kind": "x", "tree": nested(20_000)}, {"callback": lambda: 0}
        calls = [(name, "0", "0", row) for row in ({}, deep, {}, function, {"tree": nested(50)}, deep)]
        verdicts = [future.result(WAIT) for future in pool.submit_many([*calls, (name, "0", nested(20_000), {})])]
        plain, errors = verdicts[0:5:2], [*verdicts[1:4:2], *verdicts[5:]]
        assert [verdict.status for verdict in plain] == [Status.CORRECT] * 3
        assert [verdict.status for verdict in errors] == [Status.ERROR] * 4
        assert f"{name}: column 'tree' cannot be sent to a worker process (RecursionError" in errors[0].reason
        assert "at most 100 levels of nesting, or store the value as JSON text" in errors[0].reason
        assert "column 'callback'" in errors[1].reason and "the reference answer" in errors[3].reason
        assert pool.submit(name, "0", "0", {}).result(WAIT).status is Status.CORRECT
        assert pool.stats().died == pool.stats().killed == 0


def test_each_completion_of_a_group_whose_row_cannot_be_sent_gets_the_error() -> None:
    with VerifierPool({"compare": compare}, workers=1) as pool:
        futures = pool.submit_group("compare", ["a", "aa"], "", {}, {"trees": [nested(20_000), []]})
        reasons = [future.result(WAIT).reason for future in futures]
        assert len(reasons) == 2 and all("compare: column 'trees' cannot be sent" in reason for reason in reasons)
        assert pool.submit_group("compare", ["a"], "", {})[0].result(WAIT).score is not None
