from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pandas
import pyarrow.parquet as pq
import pytest
from fake_run import HOSTILE, make_advantages, make_groups, make_rollout

from grpo.report import rollout_store, run_files
from grpo.report.rollout_store import read_groups, stored_steps, write_step
from grpo.types import Group, Prompt
from rewards import verdict


@pytest.fixture
def group() -> Group:
    prompt = Prompt("gsm8k/7", "1+1=?", (1, 2), {"answer": 2, "unit": "apples"}, {"level": 3, "source": "é"})
    right = {"exact": verdict.correct("2 = 2", tags=1.0), "format": verdict.wrong("no tags", score=-0.5)}
    late = {"exact": verdict.timeout("no answer within 5 s"), "format": verdict.correct()}
    return Group(prompt, (make_rollout("two", right, version=4), make_rollout("loop", late, finish="length")))


def test_every_column_holds_what_was_given(tmp_path: Path, group: Group) -> None:
    path = write_step(tmp_path, 12, [group], [[1.5, None]])
    assert path == tmp_path / "rollouts" / "step_000012.parquet"
    first, second = pq.read_table(path).to_pylist()
    assert (first["step"], first["group"], first["sample"], second["sample"]) == (12, 0, 0, 1)
    assert (first["prompt_id"], first["prompt"]) == ("gsm8k/7", "1+1=?")
    assert json.loads(first["reference"]) == {"answer": 2, "unit": "apples"}
    assert json.loads(first["row"]) == {"level": 3, "source": "é"}
    assert (first["completion"], first["completion_tokens"], first["finish_reason"]) == ("two", 3, "stop")
    assert first["token_ids"] == [ord(letter) for letter in "two"]
    assert first["logprobs"] == pytest.approx([-0.1] * 3)
    assert first["spans"] == [
        {"start": 0, "stop": 1, "policy_version": 4},
        {"start": 1, "stop": 3, "policy_version": 5},
    ]
    assert first["verdicts"][0] == {
        "verifier": "exact",
        "status": "correct",
        "score": 1.0,
        "reason": "2 = 2",
        "parts": [{"name": "tags", "value": 1.0}],
    }
    assert (first["reward"], first["advantage"]) == (0.25, 1.5)
    # A failure of the machinery is not a score of 0.
    assert (second["reward"], second["advantage"], second["verdicts"][0]["score"]) == (None, None, None)
    assert second["verdicts"][0]["status"] == "timeout"


def test_pandas_and_datasets_read_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    generator = random.Random(0)
    for step in (1, 2):
        groups = make_groups(generator, step, 0.6)
        write_step(tmp_path, step, groups, make_advantages(groups))
    frame = pandas.read_parquet(tmp_path / "rollouts")
    assert len(frame) == 2 * 4 * 8
    files = str(tmp_path / "rollouts" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == len(frame)
    assert rows[0]["verdicts"][0]["verifier"] == "exact"


def test_columns_stay_documented() -> None:
    table = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text().split("## Rollouts")[1].split("\n## ")[0]
    documented = {
        name.strip(" `")
        for line in table.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    }
    assert documented == set(rollout_store.SCHEMA.names)


def test_groups_are_read_back_in_order(tmp_path: Path, group: Group) -> None:
    other = Group(Prompt("gsm8k/9", "2+2=?", (1,), "4", {}), (make_rollout("four", {"exact": verdict.correct()}),))
    write_step(tmp_path, 3, [group, other], [[0.5, math.nan], [0.0]])
    first, second = read_groups(tmp_path, 3)
    assert (first.prompt_id, second.prompt_id, first.index, second.index) == ("gsm8k/7", "gsm8k/9", 0, 1)
    assert [rollout.advantage for rollout in first.rollouts] == [0.5, None]
    assert first.rollouts[0].policy_versions == (4, 5)
    assert first.rollouts[0].verdicts[1].reason == "no tags"
    assert second.reference == '"4"'


def test_hostile_text_is_stored_and_not_lost(tmp_path: Path) -> None:
    rollout = make_rollout(HOSTILE, {"exact": verdict.wrong("\ud800")})
    prompt = Prompt("p\udfff", "say \udfff", (1,), "\ud800", {"x": "\ud800"})
    write_step(tmp_path, 1, [Group(prompt, (rollout,))], [[0.0]])
    (stored,) = read_groups(tmp_path, 1)
    text = stored.rollouts[0].completion
    assert text == HOSTILE.replace("\ud800", "\\ud800")
    assert "\x00" in text


@pytest.mark.parametrize("advantages", [[], [[1.0]], [[1.0, 2.0, 3.0]], [[1.0, 2.0], [1.0]]])
def test_advantages_of_another_shape_are_refused(
    tmp_path: Path, group: Group, advantages: list[list[float | None]]
) -> None:
    with pytest.raises(ValueError, match="advantages"):
        write_step(tmp_path, 1, [group], advantages)
    assert stored_steps(tmp_path) == ()


def test_truncating_removes_later_steps_only(tmp_path: Path, group: Group) -> None:
    for step in (2, 10, 11, 1000000):
        write_step(tmp_path, step, [group], [[0.0, None]])
    (tmp_path / "rollouts" / "step_000012.parquet.partial").write_bytes(b"torn")
    assert stored_steps(tmp_path) == (2, 10, 11, 1000000)
    rollout_store.truncate_after(tmp_path, 10)
    assert stored_steps(tmp_path) == (2, 10)


def test_evaluations_lie_beside_the_rollouts(tmp_path: Path, group: Group) -> None:
    write_step(tmp_path, 4, [group], [[None, None]], run_files.EVALUATIONS)
    assert stored_steps(tmp_path) == ()
    assert stored_steps(tmp_path, run_files.EVALUATIONS) == (4,)
    assert read_groups(tmp_path, 4, run_files.EVALUATIONS)[0].prompt_id == "gsm8k/7"
    rollout_store.truncate_after(tmp_path, 3)
    assert stored_steps(tmp_path, run_files.EVALUATIONS) == ()


def test_thinning_keeps_ends_and_spread(tmp_path: Path, group: Group) -> None:
    for step in range(1, 10):
        size = write_step(tmp_path, step, [group], [[0.0, None]]).stat().st_size
    assert rollout_store.thin(tmp_path, 9 * size + 100) == 0
    assert rollout_store.thin(tmp_path, 6 * size + 100) == 3
    assert stored_steps(tmp_path) == (1, 3, 5, 7, 8, 9)
    # Fewer and fewer, always evenly; the first and the last step stay even where they are more than what is allowed.
    assert rollout_store.thin(tmp_path, 3 * size + 100) == 3
    assert stored_steps(tmp_path) == (1, 5, 9)
    assert rollout_store.thin(tmp_path, 1) == 1
    assert stored_steps(tmp_path) == (1, 9)


def test_dense_rollouts_go_before_sparse_evaluations(tmp_path: Path, group: Group) -> None:
    for step in range(1, 10):
        size = write_step(tmp_path, step, [group], [[0.0, None]]).stat().st_size
    for step in (0, 4, 8):
        write_step(tmp_path, step, [group], [[None, None]], run_files.EVALUATIONS)
    rollout_store.thin(tmp_path, 7 * size + 100)
    assert stored_steps(tmp_path, run_files.EVALUATIONS) == (0, 4, 8)
    assert len(stored_steps(tmp_path)) == 4
