"""Store the completions of a task. Each completion is appended when its verdict arrives, so an evaluation can resume.

`completions.jsonl` has one object per line and is the primary record. `completions.parquet` is written at the end: it
holds the same completions in order, and adds the classes of answers. `docs/evaluation.md` documents the columns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo import files
from grpo.evaluation.questions import NO_COMPLETION, SampleEnd
from grpo.report.conversations.columns import storable
from grpo.report.json_lines import JsonLines, complete_lines
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
        ("parts", pa.string()),
        ("conversation", pa.string()),
        ("answer", pa.string()),
        ("answer_class", pa.int32()),
    ],
    metadata={"verigrpo.evaluation": SCHEMA_VERSION},
)

# Columns that hold JSON in the table. Files from before these columns existed lack them.
_NESTED = ("parts", "conversation")

# (problem, seed, sample): the identity of a completion.
Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """A completion with its verdict.

    Attributes:
        problem: id of the problem.
        digest: digest of the problem's question and reference.
        seed: seed of the evaluation, from `--seeds`.
        sample: number of the completion within its problem and seed, from 0.
        completion: text of the completion.
        completion_tokens: length in tokens, with the end-of-sequence token.
        finish_reason: `stop` if the model ended the completion, `length` if the limit ended it, `refused` if a server
            gave no usable completion, `failed` if the world of a conversation failed.
        status: status of the verdict.
        score: score of the verdict; None if the verdict failed.
        reason: reason of the verdict.
        parts: named parts of the verdict; empty in files from before they were stored.
        conversation: messages, end and calls of a conversation (`grpo.evaluation.playing.stored`); empty for a single
            turn.
    """

    problem: str
    digest: str
    seed: int
    sample: int
    completion: str
    completion_tokens: int
    finish_reason: SampleEnd
    status: Status
    score: float | None
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)
    conversation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Key of the completion."""
        return self.problem, self.seed, self.sample

    @property
    def correct(self) -> bool:
        """Whether the verdict is `correct`."""
        return self.status is Status.CORRECT


class CompletionStore(JsonLines):
    """The completions of a task, on disk. If two have the same key, the later completion counts."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Remove the last line if it is incomplete after a kill.

        Raises:
            ValueError: another process is writing to the file, or a line before the last cannot be read.
        """
        super().__init__(path, durable=False, alone=True)
        try:
            self._records = self._read()
        except ValueError:
            self.close()
            raise

    def _read(self) -> dict[Key, Record]:
        lines = complete_lines(self.path)
        records: dict[Key, Record] = {}
        for number, line in enumerate(lines, start=1):
            record = _parse(line)
            if record is not None:
                records[record.key] = record
            elif number < len(lines):
                raise ValueError(
                    f"line {number} of {self.path} is no completion; another program has changed the file: mend "
                    "the line, or choose a new --out"
                )
            else:
                # A power cut left an incomplete last line: remove it.
                self.keep(lambda number, _: number < len(lines))
        return records

    @property
    def records(self) -> Mapping[Key, Record]:
        """All completions, by key."""
        return self._records

    def add(self, record: Record) -> None:
        """Append a completion. From now on it survives the end of the process."""
        self.write(json.dumps(dataclasses.asdict(record), ensure_ascii=True) + "\n")
        self._records[record.key] = record


def _parse(line: str) -> Record | None:
    try:
        return _record(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return None


def _record(fields: Mapping[str, Any]) -> Record:
    names = [each.name for each in dataclasses.fields(Record) if each.name not in _NESTED]
    values: dict[str, Any] = {name: fields[name] for name in names}
    values["status"] = Status(values["status"])
    for name in _NESTED:
        nested = fields.get(name) or {}
        values[name] = json.loads(nested) if isinstance(nested, str) else nested
    return Record(**values)


@dataclass(frozen=True, slots=True)
class Judged:
    """A record with its answer: a row of the table.

    Attributes:
        record: the completion and its verdict.
        question: text of the question.
        reference: correct answer, as JSON.
        answer: answer in the completion; None if there is no answer, or if the task's answers cannot vote.
        answer_class: number of the answer's class. Equal answers of a problem and seed have the same number.
    """

    record: Record
    question: str
    reference: str
    answer: str | None
    answer_class: int | None


def write_table(path: Path, rows: Sequence[Judged]) -> None:
    """Write the table. The write is atomic."""
    table = pa.Table.from_pylist([_columns(row) for row in rows], schema=SCHEMA)
    with files.whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_table(path: Path) -> list[Judged]:
    """Read a table back.

    Raises:
        ValueError: there is no table, because the evaluation has not finished.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}: give the folder of a finished evaluation of this task")
    rows = pq.read_table(path).to_pylist()
    return [Judged(_record(row), row["question"], row["reference"], row["answer"], row["answer_class"]) for row in rows]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON. The write is atomic."""
    files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing_keys(problems: Iterable[str], seeds: Sequence[int], k: int, have: Mapping[Key, Record]) -> list[Key]:
    """Return, in order, the wanted keys that `have` does not contain, or contains without a completion."""
    return [
        key for key in wanted_keys(problems, seeds, k) if key not in have or have[key].finish_reason in NO_COMPLETION
    ]


def wanted_keys(problems: Iterable[str], seeds: Sequence[int], k: int) -> list[Key]:
    """Return the keys of `k` completions for each problem and seed, in order."""
    return [(problem, seed, sample) for problem in problems for seed in seeds for sample in range(k)]


def _columns(row: Judged) -> dict[str, Any]:
    fields = dataclasses.asdict(row.record)
    fields |= {"question": row.question, "reference": row.reference}
    fields |= {"answer": row.answer, "answer_class": row.answer_class, "status": row.record.status.value}
    fields |= {name: json.dumps(fields[name]) for name in _NESTED}
    return {name: storable(value) if isinstance(value, str) else value for name, value in fields.items()}
