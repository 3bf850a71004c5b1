"""The store of completions: killed at any moment it loses nothing that was told, and counts nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grpo.evaluation.store import CompletionStore, Judged, Record, missing_keys, read_table, write_table
from rewards.verdict import Status

ROOT = Path(__file__).parents[3]


def record(problem: str = "sums:0", seed: int = 0, sample: int = 0, **fields: Any) -> Record:
    common = {"digest": "d", "completion": "12", "completion_tokens": 3, "finish_reason": "stop"}
    common |= {"status": Status.CORRECT, "score": 1.0, "reason": ""}
    return Record(problem=problem, seed=seed, sample=sample, **(common | fields))


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "task" / "completions.jsonl"
    odd = record("sums:1", completion='line\nbreak "quoted" \ud800 \u2028 é', status=Status.ERROR, score=None)
    with CompletionStore(path) as store:
        store.add(record())
        store.add(odd)
    with CompletionStore(path) as store:
        assert list(store.records.values()) == [record(), odd]


def test_completions_from_before_parts_were_stored_are_read(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    with CompletionStore(path) as store:
        store.add(record(parts={"a": 0.5}))
        store.add(record(sample=1))
    kept = path.read_text()
    path.write_text(kept.replace(', "parts": {}', ""))
    assert path.read_text() != kept
    with CompletionStore(path) as store:
        assert [each.parts for each in store.records.values()] == [{"a": 0.5}, {}]


@pytest.mark.parametrize("torn", [b'{"problem": "sums:1", "dig', b"\x00\x00\x00\n", b'{"problem": "sums:1"}\n', b"{}"])
def test_a_last_line_that_was_cut_short_is_taken_away(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "completions.jsonl"
    with CompletionStore(path) as store:
        store.add(record())
    with path.open("ab") as file:
        file.write(torn)
    with CompletionStore(path) as store:
        assert list(store.records) == [("sums:0", 0, 0)]
        store.add(record(sample=1))
    with CompletionStore(path) as store:
        assert list(store.records) == [("sums:0", 0, 0), ("sums:0", 0, 1)]


def test_a_broken_line_in_the_midst_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    with CompletionStore(path) as store:
        store.add(record())
    whole = path.read_bytes()
    path.write_bytes(whole + b"oh\n" + whole)
    with pytest.raises(ValueError, match=r"line 2 of .*completions\.jsonl is no completion"):
        CompletionStore(path)
    assert path.read_bytes() == whole + b"oh\n" + whole


def test_the_later_of_two_counts_and_what_is_there_is_not_missing(tmp_path: Path) -> None:
    with CompletionStore(tmp_path / "completions.jsonl") as store:
        store.add(record(status=Status.TIMEOUT, score=None))
        store.add(record())
        assert [one.status for one in store.records.values()] == [Status.CORRECT]
        assert missing_keys(["sums:0", "sums:1"], [0, 7], 2, store.records) == [
            ("sums:0", 0, 1), ("sums:0", 7, 0), ("sums:0", 7, 1),
            ("sums:1", 0, 0), ("sums:1", 0, 1), ("sums:1", 7, 0), ("sums:1", 7, 1),
        ]  # fmt: skip


def test_two_evaluations_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    with CompletionStore(path), pytest.raises(ValueError, match="another process is writing"):
        CompletionStore(path)
    CompletionStore(path).close()


WRITER = """
import sys
from pathlib import Path
from grpo.evaluation.store import CompletionStore, Record
from rewards.verdict import Status

with CompletionStore(Path(sys.argv[1])) as store:
    start = len(store.records)
    for number in range(start, 10**9):
        store.add(Record(f"p:{number}", "d", 0, 0, "x" * (number * 37 % 5000), 1, "stop", Status.WRONG, 0.0, ""))
        print(number, flush=True)
"""


def test_killed_while_it_writes_it_has_all_that_it_told(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read().split()
        writer.wait(30)
        with CompletionStore(path) as store:
            assert told and list(store.records) == [(f"p:{number}", 0, 0) for number in range(len(store.records))]
            assert len(store.records) > int(told[-1])


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [
        Judged(record(), "1+1=?", '"2"', "2", 0),
        Judged(record(sample=1, status=Status.ERROR, score=None), "1+1=?", '"2"', None, None),
    ]
    write_table(tmp_path / "table.parquet", rows)
    assert read_table(tmp_path / "table.parquet") == rows
    write_table(tmp_path / "odd.parquet", [Judged(record(completion="\ud800"), "?", "1", None, None)])
    assert read_table(tmp_path / "odd.parquet")[0].record.completion == "\\ud800"
    with pytest.raises(ValueError, match="of a finished evaluation"):
        read_table(tmp_path / "none.parquet")
