from __future__ import annotations

import pytest

from grpo.report.closing_table import closing_table, duration
from grpo.report.metrics_log import History, MetricsLine
from grpo.report.step_time import mean_step_time, step_time


def history(*metrics: dict[str, float]) -> History:
    return History(tuple(MetricsLine(step, 0.0, one) for step, one in enumerate(metrics)))


def test_rates_are_amount_over_time_and_not_the_mean_of_rates() -> None:
    # 100 completions in 1 s, then 100 in 9 s: 20 a second, where the mean of the two rates would say 56.
    run = history(
        {"throughput/completions_per_s": 100.0, "time/step_s": 1.0},
        {"throughput/completions_per_s": 100 / 9, "time/step_s": 9.0},
    )
    assert dict(closing_table("run", run).rows)["completions/s"] == "20.0"


def test_split_adds_up_to_the_step() -> None:
    parts = {"time/generate_s": 1.0, "time/verify_s": 0.0, "time/learn_s": 0.5, "time/sync_s": 0.1}
    rows = dict(closing_table("run", history({}, {**parts, "time/step_s": 2.0})).rows)
    assert rows["mean step time"] == "2.00 s"
    assert rows["  generate"].split() == ["1.00", "s", "50%"]
    assert rows["  rest"].split() == ["0.40", "s", "20%"]


def test_parts_that_overlap_leave_no_negative_rest() -> None:
    timed = step_time(history({"time/generate_s": 1.0, "time/learn_s": 1.0, "time/step_s": 1.5}))
    assert timed is not None
    assert timed.parts["rest"] == (0.0,)


def test_best_is_told_only_where_it_is_not_the_last() -> None:
    def accuracy(*values: float) -> str:
        return dict(closing_table("run", history(*[{"eval/accuracy": value} for value in values])).rows)[
            "held-out accuracy"
        ]

    assert accuracy(0.4, 0.9, 0.8) == "0.400 -> 0.800   best 0.900 at step 1"
    assert accuracy(0.4, 0.8, 0.9) == "0.400 -> 0.900"
    assert accuracy(0.4) == "0.400"


def test_each_verifier_has_its_share_of_correct_and_its_slowest_verdicts() -> None:
    first = {"verifier/answer/p99_s": 0.001, "verdict/answer/correct": 0.25}
    run = history(first, {"verifier/answer/p99_s": 0.003, "verdict/answer/correct": 0.75})
    figure = dict(closing_table("run", run).rows)["answer verdicts"]
    assert figure == "25% -> 75% correct; 99th percentile 2 ms, at worst 3 ms"


def test_numbers_that_are_not_finite_are_left_out() -> None:
    run = history({"reward/mean": 0.2}, {"reward/mean": float("nan")}, {"reward/mean": 0.6})
    assert dict(closing_table("run", run).rows)["mean reward"] == "0.200 -> 0.600"


def test_failed_verdicts_are_summed_and_silent_when_there_are_none() -> None:
    assert "failed verdicts" not in dict(closing_table("run", history({"rollout/failed_verdicts": 0.0})).rows)
    run = history({"rollout/failed_verdicts": 2.0}, {"rollout/failed_verdicts": 1.0})
    assert dict(closing_table("run", run).rows)["failed verdicts"].startswith("3 ")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_step_time_over_runs_is_the_mean_where_all_have_a_step() -> None:
    def run(*seconds: float) -> History:
        return history(*[{"time/step_s": one, "time/learn_s": one / 2} for one in seconds])

    timed = [one for one in (step_time(run(1.0, 3.0, 9.0)), step_time(run(3.0, 5.0))) if one]
    mean = mean_step_time(timed)
    assert mean is not None
    assert mean.steps == (0, 1)
    assert mean.parts["learn"] == (1.0, 2.0)
    assert mean.totals() == (2.0, 4.0)
    assert mean_step_time([]) is None


def test_drawing_cuts_one_slow_step_and_no_ordinary_one() -> None:
    slow = step_time(history(*[{"time/step_s": one} for one in [30.0] + [1.0] * 30]))
    even = step_time(history(*[{"time/step_s": one} for one in [2.0] + [1.0] * 30]))
    assert slow is not None and even is not None
    top, is_cut = slow.top()
    assert top == pytest.approx(1.2) and is_cut
    assert even.top() == (2.0, False)
    assert slow.edges()[0] == -0.5 and slow.edges()[-1] == 30.5
    assert sum(slow.thinned(10).parts["rest"]) / 10 == pytest.approx(60 / 31, rel=0.15)


def test_a_phase_that_a_job_does_not_have_is_not_listed() -> None:
    fine_tuning = history(*[{"time/learn_s": 1.0, "time/step_s": 1.5}] * 2)
    labels = [label.strip() for label, _ in closing_table("run", fine_tuning).rows]
    assert labels == ["mean step time", "learn", "rest"]
    timed = step_time(fine_tuning)
    other = step_time(history({"time/generate_s": 2.0, "time/learn_s": 3.0, "time/step_s": 5.0}))
    only_total = step_time(history({"time/step_s": 5.0}))
    assert timed and other and only_total
    mean = mean_step_time([timed, other])
    assert mean and list(mean.parts) == ["generate", "learn", "rest"] and mean.parts["generate"] == (1.0,)
    assert only_total.parts == {"rest": (5.0,)}


def test_sources_say_whether_their_accuracy_is_of_held_out_or_of_training_prompts() -> None:
    steps = [
        {"source/sums/accuracy": value, "eval/sums/accuracy": value / 2, "eval/accuracy": value} for value in (0.2, 0.4)
    ]
    rows = dict(closing_table("run", history(*steps)).rows)
    assert rows["sums held-out accuracy"] == "0.100 -> 0.200"
    assert rows["sums training accuracy"] == "0.200 -> 0.400"
    assert "sums accuracy" not in rows


def test_conversations_have_lines_for_turns_and_calls() -> None:
    run = history(
        {"conversation/turns_mean": 1.0, "conversation/calls_mean": 0.25},
        {"conversation/turns_mean": 2.5, "conversation/calls_mean": 1.5},
    )
    rows = dict(closing_table("run", run).rows)
    assert rows["turns of a conversation"] == "1.0 -> 2.5" and rows["tool calls of a conversation"] == "0.2 -> 1.5"
    assert not [
        label for label, _ in closing_table("run", history({"reward/mean": 0.2})).rows if "conversation" in label
    ]
