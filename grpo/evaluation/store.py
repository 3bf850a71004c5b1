"""The completions of one task: appended to a file as their verdicts come, so that an evaluation goes on where it was.

`completions.jsonl` has one object per line and is the truth; `completions.parquet`, written at the end, is the same in
order and with the classes of answers. The columns are documented in `docs/evaluation.md`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo import files
from grpo.report.json_lines import JsonLines, complete_lines
from grpo.report.rollout_store import storable
from grpo.types import FinishReason
from rewards.verdict import Status

LINES, TABLE = "completions.jsonl", "completions.parquet"
SCHEMA_VERSION = "1"
SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("digest", pa.string()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("seed", pa.int64()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("completion_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("status", pa.string()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("answer", pa.string()),
        ("answer_class", pa.int32()),
    ],
    metadata={"verigrpo.evaluation": SCHEMA_VERSION},
)

# (problem, seed, sample): what a completion is known by.
Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """A completion with its verdict.

    Attributes:
        problem: the problem's id.
        digest: the problem's digest: of what was asked and what is right.
        seed: of the evaluation, one of `--seeds`.
        sample: its number among the completions of this problem and seed, from 0.
        completion: its text.
        completion_tokens: its length, the end-of-sequence token included.
        finish_reason: `stop` where the model ended it, `length` where the limit did.
        status: the verdict's.
        score: the verdict's; None where it failed.
        reason: the verdict's.
    """

    problem: str
    digest: str
    seed: int
    sample: int
    completion: str
    completion_tokens: int
    finish_reason: FinishReason
    status: Status
    score: float | None
    reason: str

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.problem, self.seed, self.sample

    @property
    def correct(self) -> bool:
        """True where the verdict says so."""
        return self.status is Status.CORRECT


class CompletionStore(JsonLines):
    """The completions of one task, on disk; of two with the same key the later one counts."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, and take away a last line that a kill cut short.

        Raises:
            ValueError: another process is writing to it, or a line in its midst cannot be read.
        """
        super().__init__(path, durable=False, alone=True)
        try:
            self._records = self._read()
        except ValueError:
            self.close()
            raise

    def _read(self) -> dict[Key, Record]:
        lines = complete_lines(self.path)
        found: dict[Key, Record] = {}
        for number, line in enumerate(lines, start=1):
            record = _parse(line)
            if record is not None:
                found[record.key] = record
            elif number < len(lines):
                raise ValueError(
                    f"line {number} of {self.path} is no completion; the file was changed by something else: mend "
                    "that line, or start a new --out"
                )
            else:
                # What a power cut left of the last line.
                self.keep(lambda number, _: number < len(lines))
        return found

    @property
    def records(self) -> Mapping[Key, Record]:
        """All completions, by key."""
        return self._records

    def add(self, record: Record) -> None:
        """Append one; it survives the process from now on."""
        self.write(json.dumps(dataclasses.asdict(record), ensure_ascii=True) + "\n")
        self._records[record.key] = record


def _parse(line: str) -> Record | None:
    try:
        return _record(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return None


def _record(fields: Mapping[str, Any]) -> Record:
    own: dict[str, Any] = {field.name: fields[field.name] for field in dataclasses.fields(Record)}
    own["status"] = Status(own["status"])
    return Record(**own)


@dataclass(frozen=True, slots=True)
class Judged:
    """A record beside what it answers: one row of the table.

    Attributes:
        record: the completion and its verdict.
        question: what was asked.
        reference: what is right, as JSON.
        answer: what the completion answers; None where nothing was found, or the task's answers cannot vote.
        answer_class: answers of one problem and seed that are verified to be the same have the same number.
    """

    record: Record
    question: str
    reference: str
    answer: str | None
    answer_class: int | None


def write_table(path: Path, rows: Sequence[Judged]) -> None:
    """Write the table; it appears whole or not at all."""
    table = pa.Table.from_pylist([_columns(row) for row in rows], schema=SCHEMA)
    with files.whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_table(path: Path) -> list[Judged]:
    """Read a table back.

    Raises:
        ValueError: there is none: the evaluation has not come to its end.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}: give the folder of an evaluation of this task that has come to its end")
    rows = pq.read_table(path).to_pylist()
    return [Judged(_record(row), row["question"], row["reference"], row["answer"], row["answer_class"]) for row in rows]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON; the file appears whole or not at all."""
    files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing_keys(problems: Iterable[str], seeds: Sequence[int], k: int, have: Mapping[Key, Record]) -> list[Key]:
    """The completions that are wanted and not there, each once, in order."""
    return [key for key in wanted_keys(problems, seeds, k) if key not in have]


def wanted_keys(problems: Iterable[str], seeds: Sequence[int], k: int) -> list[Key]:
    """Keys of `k` completions for each problem and seed, in order."""
    return [(problem, seed, sample) for problem in problems for seed in seeds for sample in range(k)]


def _columns(row: Judged) -> dict[str, Any]:
    fields = dataclasses.asdict(row.record)
    fields |= {"question": row.question, "reference": row.reference}
    fields |= {"answer": row.answer, "answer_class": row.answer_class, "status": row.record.status.value}
    return {name: storable(value) if isinstance(value, str) else value for name, value in fields.items()}
