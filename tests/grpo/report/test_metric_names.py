"""The names that a run reports are those of docs/metrics.md."""

from __future__ import annotations

import random

from documented_metrics import documented_names, is_documented
from fake_run import make_metrics

from grpo.algorithm.preference_loss import PAIR_SUMS
from grpo.report.display import FINE_TUNING_FIELDS, GRPO_FIELDS
from grpo.report.step_time import TIMED_PARTS


def test_what_is_reported_shown_and_drawn_is_documented() -> None:
    fields = [*GRPO_FIELDS, *(field for job in FINE_TUNING_FIELDS.values() for field in job)]
    used = [*make_metrics(random.Random(0), 1, 0.5), *(field.metric for field in fields)]
    used += [*PAIR_SUMS[2:], *(f"eval/{name}" for name in ("loss", *PAIR_SUMS[2:]))]
    used += ["time/run_s", "eval/accuracy", *(f"time/{part}_s" for part in TIMED_PARTS)]
    assert [name for name in used if not is_documented(name)] == []


def test_the_table_is_strict_and_names_nothing_twice() -> None:
    names = documented_names()
    assert len(names) > 30
    assert len(names) == len(set(names))
    assert is_documented("verdict/exact/timeout")
    assert not is_documented("verdict/exact") and not is_documented("rewards/mean")
