"""What the page shows: filters, refreshing, groups with their tokens, what was learned, the time line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import HOSTILE, make_advantages, make_rollout, silent_progress, write_fake_run
from tiny_policy import make_tiny_policy

from grpo.report import rollout_store
from grpo.report.recorder import RunRecorder
from grpo.report.rollout_store import write_step
from grpo.types import Group, Prompt
from grpo.view import curves
from grpo.view import payloads as view_data
from grpo.view.index import Filter, RolloutIndex
from grpo.view.learned import learned
from grpo.view.runs import open_runs
from grpo.visible import visible
from rewards import verdict
from rewards.verdict import Verdict


def group(name: str, *members: tuple[str, Verdict], prompt: str = "1+1=?") -> Group:
    rollouts = tuple(make_rollout(text, {"exact": said}) for text, said in members)
    return Group(Prompt(name, prompt, (1, 2), "2", {}), rollouts)


RIGHT, WRONG, LATE = verdict.correct(), verdict.wrong("no"), verdict.timeout("late")
HALF = verdict.wrong("half", score=0.5)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Step 1: a (right, wrong), b (two right). Step 2: c (half, late), d (wrong)."""
    a, b = group("a", ("the Cat", RIGHT), ("a dog, long", WRONG)), group("b", ("cat", RIGHT), ("bird", RIGHT))
    c, d = group("c", ("eel", HALF), ("x" * 40, LATE)), group("d", ("fox", WRONG), prompt="which CATFISH?")
    write_step(tmp_path, 1, [a, b], make_advantages([a, b]))
    write_step(tmp_path, 2, [c, d], make_advantages([c, d]))
    return tmp_path


def index_of(run_dir: Path) -> RolloutIndex:
    index = RolloutIndex(run_dir)
    index.refresh()
    return index


def names(index: RolloutIndex, order: Any = "oldest", **conditions: Any) -> list[tuple[str, int]]:
    """(prompt id, completions that pass) of the groups found."""
    snapshot, found = index.search(Filter(**conditions), order)
    rows = snapshot.rows(found, 0, 100)
    assert found.completions == sum(row["matches"] for row in rows)
    return [(row["prompt_id"], row["matches"]) for row in rows]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [("a", 2), ("b", 2), ("c", 2), ("d", 1)]),
        ({"statuses": frozenset({"correct"})}, [("a", 1), ("b", 2)]),
        ({"statuses": frozenset({"timeout", "correct"})}, [("a", 1), ("b", 2), ("c", 1)]),
        # A reward that is not known is neither low nor high.
        ({"reward_low": 0.0}, [("a", 2), ("b", 2), ("c", 1), ("d", 1)]),
        ({"reward_low": 0.5, "reward_high": 0.9}, [("c", 1)]),
        ({"tokens_high": 3}, [("b", 1), ("c", 1), ("d", 1)]),
        ({"tokens_low": 11, "tokens_high": 11}, [("a", 1)]),
        ({"step_low": 2}, [("c", 2), ("d", 1)]),
        ({"step_high": 1, "statuses": frozenset({"wrong"})}, [("a", 1)]),
        # In the completion or in the prompt, whatever the case; letters only, no pattern.
        ({"text": "CAT"}, [("a", 1), ("b", 1), ("d", 1)]),
        ({"text": "c.t"}, []),
        ({"text": "cat", "statuses": frozenset({"wrong"})}, [("d", 1)]),
    ],
)
def test_filters(stored: Path, conditions: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    assert names(index_of(stored), **conditions) == expected


def test_orders(stored: Path) -> None:
    index = index_of(stored)
    assert [name for name, _ in names(index, "newest")] == ["c", "d", "a", "b"]
    assert names(index, "spread")[0] == ("a", 2)


def test_a_status_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="one of correct, wrong"):
        Filter(statuses=frozenset({"right"}))


def test_rows_tell_the_whole_group(stored: Path) -> None:
    snapshot, found = index_of(stored).search(Filter(statuses=frozenset({"timeout"})))
    (row,) = snapshot.rows(found, 0, 10)
    assert (row["step"], row["group"], row["completions"], row["matches"], row["reward"]) == (2, 0, 2, 1, 0.5)
    assert row["statuses"] == {"wrong": 1, "timeout": 1}
    assert row["tokens"] == (3 + 40) / 2 and row["has_failed"]


def test_a_completion_counts_once_by_the_verifier_that_decides_accuracy(tmp_path: Path) -> None:
    other = {"exact": WRONG, "format": RIGHT}
    members = tuple(make_rollout("text", {"exact": RIGHT, "format": RIGHT} if at < 2 else other) for at in range(7))
    late = make_rollout("text", {"exact": WRONG, "format": LATE})
    # In mixed data, another verifier may be the first verifier that judges a row.
    mixed = Group(Prompt("b", "1+1=?", (1, 2), "2", {}), (make_rollout("text", {"code": HALF}),) * 2)
    stored = [Group(Prompt("a", "1+1=?", (1, 2), "2", {}), (*members, late)), mixed]
    write_step(tmp_path, 1, stored, make_advantages(stored))
    snapshot, found = index_of(tmp_path).search(Filter(), "oldest")
    first, second = snapshot.rows(found, 0, 10)
    assert first["statuses"] == {"correct": 2, "wrong": 6} and first["has_failed"]
    assert first["statuses"]["correct"] == sum(rollout.correct for rollout in stored[0].rollouts)
    assert second["statuses"] == {"wrong": 2} and not second["has_failed"]
    # The filter looks at every verifier's verdict.
    assert names(index_of(tmp_path), statuses=frozenset({"timeout"})) == [("a", 1)]


def test_what_is_new_changed_gone_or_torn_is_seen(stored: Path) -> None:
    index = index_of(stored)
    before = index.snapshot
    index.refresh()
    assert index.snapshot is before
    new = group("e", ("gnu", RIGHT))
    write_step(stored, 3, [new], [[0.0]])
    write_step(stored, 2, [new], [[0.0]])
    rollout_store.step_path(stored, 1).unlink()
    index.refresh()
    assert names(index) == [("e", 1), ("e", 1)]
    (stored / "rollouts" / "step_000004.parquet").write_bytes(b"PAR1 torn")
    index.refresh()
    assert names(index) == [("e", 1), ("e", 1)]
    assert "step_000004.parquet cannot be read" in index.problems[4]
    index.refresh()
    assert 4 in index.problems
    write_step(stored, 4, [new], [[0.0]])
    index.refresh()
    assert index.problems == {} and len(names(index)) == 3


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        open_runs([tmp_path])


def test_a_group_with_every_verdict_and_token(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(str(policy))("<think>1+1=2</think>")["input_ids"]
    said = {"exact": verdict.wrong("no", tags=0.5), "form": verdict.timeout("late")}
    made = make_rollout("<think>1+1=2</think>"[: len(ids)], said, version=7)
    rollout = replace(made, completion=replace(made.completion, token_ids=tuple(ids)))
    write_step(tmp_path, 3, [Group(Prompt("p", "1+1=?", (1,), {"a": 1}, {}), (rollout,))], [[-1.5]])
    (tmp_path / "config.yaml").write_text(f"policy: {{path: {policy}}}")
    (run,) = open_runs([tmp_path])
    (found,) = view_data.group_details(run, "training", 3, [0], shaded_tokens=1000)
    (one,) = found["completions"]
    assert found["reference"] == '{"a": 1}' and found["has_tokenizer"]
    assert (one["reward"], one["advantage"], one["versions"]) == (None, -1.5, [7, 8])
    assert [given["status"] for given in one["verdicts"]] == ["wrong", "timeout"]
    assert one["verdicts"][0]["parts"] == [{"name": "tags", "value": 0.5}]
    assert "".join(text for text, _, _ in one["tokens"]) == "<think>1+1=2</think>"
    assert [version for _, _, version in one["tokens"]] == [7] * (len(ids) // 2) + [8] * (len(ids) - len(ids) // 2)
    assert one["tokens"][0][1] == pytest.approx(-0.1)
    for step, index in ((4, 0), (3, 1)):
        with pytest.raises(LookupError):
            view_data.group_details(run, "training", step, [index])


def test_without_a_tokenizer_tokens_are_told_by_number(stored: Path) -> None:
    (run,) = open_runs([stored])
    (found,) = view_data.group_details(run, "training", 2, [0], shaded_tokens=1000)
    assert not found["has_tokenizer"]
    assert [text for text, _, _ in found["completions"][0]["tokens"]] == [f"{ord(letter)} " for letter in "eel"]


def test_hostile_text_leaves_visible(tmp_path: Path) -> None:
    rollout = make_rollout(HOSTILE, {HOSTILE: verdict.wrong(HOSTILE)})
    write_step(tmp_path, 1, [Group(Prompt(HOSTILE, HOSTILE, (1,), HOSTILE, {}), (rollout,))], [[0.0]])
    (run,) = open_runs([tmp_path])
    run.indexes["training"].refresh()
    shown = visible(HOSTILE.replace("\ud800", "\\ud800"))
    listed = view_data.list_groups(run, "training", Filter(text="<script>"))
    (detail,) = view_data.group_details(run, "training", 1, [0], shaded_tokens=1000)
    assert listed["rows"][0]["prompt_id"] == detail["prompt"] == detail["completions"][0]["completion"] == shown
    for data in (listed, detail, run.flags()):
        assert "\u202e" not in json.dumps(data, ensure_ascii=False) and "\\u0000" not in json.dumps(data)


def test_held_out_prompts_at_two_steps(tmp_path: Path) -> None:
    texts = {"correct": "=2", "wrong": "=3", "timeout": "=?"}
    before = {"a": WRONG, "b": RIGHT, "c": LATE, "d": RIGHT}
    # Not in the same order.
    after = {"d": RIGHT, "a": RIGHT, "b": WRONG, "c": RIGHT}
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step, said in ((0, before), (5, after)):
            report.evaluation(step, [group(name, (texts[one.status], one)) for name, one in said.items()])
            report.step(step, {"eval/accuracy": 0.5 + step / 20} | ({"reward/mean": 0.1} if step else {}))
        report.step(9, {"reward/mean": 0.4})
    (run,) = open_runs([tmp_path])
    found = learned(run, 0, 5)
    assert found["source"] == "held-out"
    # A verdict that failed is no answer: nothing is said of that prompt.
    assert found["reward_changes"] == {"higher": 1, "lower": 1, "same": 1, "unknown": 1}
    assert found["correct_changes"] == {"more": 1, "fewer": 1, "same": 1, "unknown": 1} and found["completions"] == 1
    first = found["prompts"][0]
    assert (first["prompt_id"], first["before"]["completion"], first["after"]["completion"]) == ("a", "=3", "=2")
    assert next(one for one in found["prompts"] if one["prompt_id"] == "c")["before"]["reward"] is None
    assert found["metrics"] == [{"name": "eval/accuracy", "before": 0.5, "after": 0.75, "difference": 0.25}]
    assert {one["name"]: one["difference"] for one in learned(run, 0, 9)["metrics"]} == pytest.approx(
        {"eval/accuracy": 0.25, "reward/mean": 0.3}
    )
    with pytest.raises(ValueError, match="before the second"):
        learned(run, 5, 5)


def test_training_prompts_that_came_again(tmp_path: Path) -> None:
    for step, groups in (
        (1, [group("a", ("=3", WRONG), ("=2", RIGHT)), group("b", ("=2", RIGHT))]),
        (2, [group("a", ("=3", WRONG), ("=3", WRONG))]),
        (3, [group("c", ("=2", RIGHT)), group("a", ("=2", RIGHT), ("=2", RIGHT))]),
        (4, [group("b", ("=3", WRONG))]),
    ):
        write_step(tmp_path, step, groups, make_advantages(groups))
    (run,) = open_runs([tmp_path])
    run.indexes["training"].refresh()
    found = learned(run, 1, 3)
    assert found["source"] == "training"
    (only,) = found["prompts"]
    assert (only["prompt_id"], only["before"]["step"], only["after"]["step"]) == ("a", 1, 3)
    assert (only["before"]["reward"], only["after"]["reward"], only["reward_change"]) == (0.5, 1.0, "higher")
    assert (only["before"]["correct"], only["after"]["correct"], only["correct_change"]) == (0.5, 1.0, "more")
    assert learned(run, 1, 4)["reward_changes"]["lower"] == 1 and found["completions"] == 2


def test_a_reward_that_rises_without_more_correct_answers_is_told_as_such(tmp_path: Path) -> None:
    def answers(formatted: Verdict, exact: Verdict) -> list[Group]:
        members = (make_rollout("text", {"exact": exact, "format": formatted}),)
        return [Group(Prompt(name, "1+1=?", (1, 2), "2", {}), members) for name in ("a", "b")]

    # All rewards rise from 0 to 0.5, but the first verifier still says `wrong`.
    for step, groups in ((1, answers(WRONG, WRONG)), (2, answers(RIGHT, WRONG))):
        write_step(tmp_path, step, groups, make_advantages(groups))
        write_step(tmp_path, step, groups, make_advantages(groups), "evaluations")
    (run,) = open_runs([tmp_path])
    found = learned(run, 1, 2)
    assert found["reward_changes"] == {"higher": 2, "lower": 0, "same": 0, "unknown": 0}
    assert found["correct_changes"] == {"more": 0, "fewer": 0, "same": 2, "unknown": 0}


def test_the_time_line_says_who_was_busy_when(tmp_path: Path) -> None:
    phases = {"generate": (0.0, 2.0), "verify": (2.0, 0.5), "learn": (2.6, 3.0), "sync": (5.6, 0.4)}
    seconds = {f"time/{name}_s": length for name, (_, length) in phases.items()} | {"time/step_s": 6.2}
    begins = {f"time/{name}_from_s": begin for name, (begin, _) in phases.items()}
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report.step(0, {"eval/accuracy": 0.5})
        report.step(1, seconds | begins | {"time/eval_s": 1.0})
        report.step(2, seconds)
    (run,) = open_runs([tmp_path])
    found = view_data.time_line(run, 1)
    drawn = [span for lane in found["lanes"] for span in lane["spans"]]
    spans = {(span["actor"], span["phase"]): (span["from"], span["to"]) for span in drawn}
    assert spans == {
        ("generators", "generate"): (0.0, 2.0),
        ("generators", "eval"): (6.2, 7.2),
        ("verifiers", "verify"): (2.0, 2.5),
        ("learner", "learn"): (2.6, 5.6),
        ("weight sync", "sync"): (5.6, 6.0),
    }
    assert (found["seconds"], found["end"], found["recorded"]) == (6.2, 7.2, True)
    # Begins of an older run are not known: its phases are laid one after the other, and that is said.
    older = view_data.time_line(run, 2)
    assert not older["recorded"] and not older["by_actor"]
    assert [lane["spans"][0]["from"] for lane in older["lanes"]] == [0.0, 2.0, 2.5, 5.5]
    with pytest.raises(LookupError, match="step 0 was not timed"):
        view_data.time_line(run, 0)


def test_the_time_line_has_a_lane_for_each_actor_that_told_what_it_did(tmp_path: Path) -> None:
    def at(begin: float, *intervals: tuple[float, float]) -> list[tuple[float, float]]:
        return [(1000.0 + begin + a, 1000.0 + begin + b) for a, b in intervals]

    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step, begin in ((9, 0.0), (10, 7.0), (11, 90.0)):
            lanes = {
                "driver": {"generate": at(begin, (0.0, 2.0)), "sync": at(begin, (4.0, 5.0))},
                "learner rank 0": {"learn": at(begin, (2.0, 4.0)), "sync": at(begin, (-3.0, -2.0))},
                # It samples ahead, whatever the loop waits for, and while nobody recorded anything.
                "generator 10": {"generate": at(begin, (0.0, 80.0))},
                "generator 9": {"generate": at(begin, (0.5, 1.5), (3.0, 3.5))},
                "verifiers on node b": {"verify": at(begin, (1.0, 1.5))},
                "generator 11": {},
            }
            report.busy(step, 1000.0 + begin, lanes)
            report.step(step, {"time/step_s": 5.0})
        # A checkpoint after the step, whose line tells more of it.
        report.busy(11, 1090.0, {"driver": {"checkpoint": at(90.0, (5.0, 6.5))}})
    (run,) = open_runs([tmp_path])

    def drawn(found: dict[str, Any]) -> dict[str, list[tuple[str, float, float]]]:
        return {
            lane["actor"]: [(span["phase"], round(span["from"], 3), round(span["to"], 3)) for span in lane["spans"]]
            for lane in found["lanes"]
        }

    first, middle, last = (view_data.time_line(run, step) for step in (9, 10, 11))
    assert list(drawn(first)) == ["generator 9", "generator 10", "verifiers on node b", "learner rank 0", "driver"]
    assert drawn(first)["generator 9"] == [("generate", 0.5, 1.5), ("generate", 3.0, 3.5)]
    # The learner tells of its part of the push with its next step; the clock starts anew at each step.
    assert drawn(first)["learner rank 0"] == [("learn", 2.0, 4.0), ("sync", 4.0, 5.0)]
    assert (first["end"], first["complete"], first["by_actor"]) == (5.0, True, True)
    # The run stood still between steps 10 and 11: nothing is drawn after the driver's last moment.
    assert drawn(middle)["generator 10"] == [("generate", 0.0, 5.0)] and middle["end"] == 5.0
    assert drawn(last)["driver"][-1] == ("checkpoint", 5.0, 6.5) and last["end"] == 6.5
    assert not last["complete"] and len(drawn(last)["learner rank 0"]) == 1
    (tmp_path / "timeline.jsonl").write_text('{"step": 9, "begin": 1, "lanes": {"driver": [1]}}\n')
    with pytest.raises(ValueError, match=r"timeline\.jsonl: expected an object with 'step', 'begin' and 'lanes'"):
        view_data.time_line(run, 9)


def test_curves_of_several_runs_keep_their_colours(tmp_path: Path) -> None:
    for name, metrics in (("one", {"a/x": 1.0}), ("two", {"a/x": 2.0, "a/y": 3.0})):
        with RunRecorder(tmp_path / name, progress=silent_progress()) as report:
            report.step(1, metrics)
            report.step(2, metrics)
    runs = open_runs([tmp_path / "one", tmp_path / "two"])
    both, single, *none = curves.charts(runs, ["a/x", "a/y", "a/z"])
    assert [(shape["label"], shape["style"]) for shape in both["shapes"]] == [("one", "r1"), ("two", "r2")]
    assert [(shape["label"], shape["style"]) for shape in single["shapes"]] == [("two", "r2")]
    assert none == []


def test_the_mismatch_is_told_with_its_alarm(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("report: {mismatch_alarm: 0.01}")
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step, found in enumerate((1e-4, 0.02, 2e-4), start=1):
            report.step(step, {"learner/mismatch_kl_first": found})
    (run,) = open_runs([tmp_path])
    found = view_data.mismatch(run)
    told = {name: found[name] for name in ("alarm", "last", "worst", "worst_step", "above")}
    assert told == {"alarm": 0.01, "last": 2e-4, "worst": 0.02, "worst_step": 2, "above": [2]}
    assert [shape["style"] for shape in found["charts"][0]["shapes"]] == ["s1", "alarm"]


def test_the_state_changes_with_metrics_and_completions(stored: Path) -> None:
    runs = open_runs([stored])
    runs[0].indexes["training"].refresh()
    versions = {view_data.state(runs)["version"], view_data.state(runs)["version"]}
    assert len(versions) == 1
    with RunRecorder(stored, progress=silent_progress()) as report:
        report.step(9, {"reward/mean": 1.0})
    versions.add(view_data.state(runs)["version"])
    write_step(stored, 9, [group("e", ("gnu", RIGHT))], [[0.0]])
    runs[0].indexes["training"].refresh()
    versions.add(view_data.state(runs)["version"])
    assert len(versions) == 3
    assert view_data.overview(runs)["runs"][0]["last_step"] == 9


def test_the_overview_of_a_whole_run(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "run", steps=20)
    runs = open_runs([tmp_path / "run"])
    found = view_data.overview(runs)
    json.dumps(found, allow_nan=False)
    assert [chart["name"] for chart in found["main"]] == [
        "accuracy",
        "reward",
        "completion_length",
        "step_time",
        "mismatch",
    ]
    assert {section["name"] for section in found["sections"]} >= {"reward", "rollout", "learner", "time", "verdict"}
    assert found["runs"][0]["stored"] == [1, 10, 20] and found["runs"][0]["without"] == []


def test_the_page_tells_only_the_checks_for_which_the_run_has_data(stored: Path) -> None:
    named = {"reward/mean": 0.5, "rollout/accuracy": 0.5, "rollout/completion_tokens_mean": 9.0, "verdict/a/error": 0.0}
    (run,) = open_runs([stored])
    with RunRecorder(stored, progress=silent_progress()) as report:
        report.step(1, named)
        assert view_data.overview([run])["runs"][0]["checks"]["made"] == [
            "the same text rewarded for different prompts",
            "rewarded completions that repeat themselves",
            "verdicts that fail more often (timeout, error)",
        ]
        for step in range(2, 7):
            report.step(step, named | {"eval/accuracy": 0.5})
    assert view_data.overview([run])["runs"][0]["checks"]["not_made"] == [
        f"verdicts against the audit's: needs `grpo audit {stored}`"
    ]
    (stored / "audit.jsonl").write_text("")
    assert len(view_data.overview([run])["runs"][0]["checks"]["made"]) == 7


def test_fine_tuning_shows_its_loss_and_needs_no_completions(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step in (1, 2):
            report.step(step, {"learner/loss": 1.0 / step, "time/step_s": 0.1, "time/learn_s": 0.1})
    runs = open_runs([tmp_path])
    for index in runs[0].indexes.values():
        index.refresh()
    found = view_data.overview(runs)
    assert [chart["name"] for chart in found["main"]] == ["loss", "step_time"]
    assert found["runs"][0]["without"] == [], "nothing says that this is supervised fine-tuning"
    (tmp_path / "config.yaml").write_text("policy: {path: p}\nsft: {epochs: 1}\n")
    assert view_data.overview(runs)["runs"][0]["without"] == ["groups", "learned", "flags", "mismatch"]
    assert view_data.list_groups(runs[0], "training", Filter(text="x"))["groups"] == 0
    assert runs[0].flags() == [] and view_data.mismatch(runs[0])["last"] is None
