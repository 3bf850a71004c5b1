"""The completions of a run: one Parquet file per stored step, one row per completion.

`rollouts/` holds the completions that a step learned from. `evaluations/` holds the answers to held-out prompts, with
the same columns. `docs/metrics.md` documents the columns. The files have no Arrow map or union, so
`pandas.read_parquet` and `datasets.load_dataset("parquet", ...)` can read them. Data without a fixed shape (the
reference, the dataset row) is a JSON string.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo import files
from grpo.report import run_files
from grpo.report.conversations.columns import (
    COLUMNS,
    TOKEN_COLUMNS,
    StoredDialogue,
    dialogue_columns,
    storable,
    stored_dialogue,
)
from grpo.types import Group, Rollout

# Version 2 added the columns of conversations. Files of version 1 are read as files without conversations.
SCHEMA_VERSION = "2"
_ENDING = ".parquet"

_NAMED_NUMBER = pa.struct([("name", pa.string()), ("value", pa.float64())])
_SPAN = pa.struct([("start", pa.int32()), ("stop", pa.int32()), ("policy_version", pa.int64())])
_VERDICT = pa.struct(
    [
        ("verifier", pa.string()),
        ("status", pa.string()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("parts", pa.list_(_NAMED_NUMBER)),
    ]
)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group", pa.int32()),
        ("sample", pa.int32()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("row", pa.string()),
        ("completion", pa.string()),
        ("completion_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("verdicts", pa.list_(_VERDICT)),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("spans", pa.list_(_SPAN)),
        *COLUMNS,
    ],
    metadata={"verigrpo.rollouts": SCHEMA_VERSION},
)


# advantages[g][i] belongs to groups[g].rollouts[i]; None or NaN if a rollout has no gradient.
Advantages = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A stored verdict, with the name of its verifier."""

    verifier: str
    status: str
    score: float | None
    reason: str
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A stored row without its lists of tokens, because readers of the text do not need these lists."""

    sample: int
    completion: str
    completion_tokens: int
    finish_reason: str
    reward: float | None
    advantage: float | None
    verdicts: tuple[StoredVerdict, ...]
    policy_versions: tuple[int, ...]
    dialogue: StoredDialogue | None = None


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """The rows of one prompt at one step."""

    step: int
    index: int
    prompt_id: str
    prompt: str
    reference: str
    rollouts: tuple[StoredRollout, ...]


def step_path(run_dir: Path, step: int, folder: str = run_files.ROLLOUTS) -> Path:
    """The path of the file with the rollouts of a step."""
    return run_dir / folder / f"{run_files.step_name(step)}{_ENDING}"


def stored_steps(run_dir: Path, folder: str = run_files.ROLLOUTS) -> tuple[int, ...]:
    """The steps whose rollouts are stored, in ascending order."""
    return tuple(run_files.steps_in(run_dir / folder, _ENDING))


def plain(reference: str) -> str:
    """A stored reference, which is JSON, as text for people: a string is returned without quotes."""
    value = json.loads(reference)
    return value if isinstance(value, str) else reference


def check_shape(groups: Sequence[Group], advantages: Advantages) -> None:
    """Raise ValueError unless there is one advantage for each rollout."""
    if len(advantages) != len(groups):
        raise ValueError(f"expected advantages for {len(groups)} groups, got {len(advantages)}")
    for index, (group, row) in enumerate(zip(groups, advantages, strict=True)):
        if len(row) != len(group.rollouts):
            raise ValueError(
                f"group {index} ({group.prompt.id!r}) has {len(group.rollouts)} rollouts, got {len(row)} advantages"
            )


def write_step(
    run_dir: Path, step: int, groups: Sequence[Group], advantages: Advantages, folder: str = run_files.ROLLOUTS
) -> Path:
    """Store the rollouts of a step. If an error occurs, no incomplete file is left.

    Raises:
        ValueError: `advantages` does not have one number for each rollout.
    """
    check_shape(groups, advantages)
    path = step_path(run_dir, step, folder)
    table = pa.Table.from_pylist(list(_rows(step, groups, advantages)), schema=SCHEMA)
    with files.whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")
    return path


def read_groups(run_dir: Path, step: int, folder: str = run_files.ROLLOUTS) -> tuple[StoredGroup, ...]:
    """Read the groups of a stored step, in the order in which they were written."""
    path = step_path(run_dir, step, folder)
    stored = pq.read_schema(path).names
    columns = [name for name in stored if name not in ("row", "token_ids", "logprobs", *TOKEN_COLUMNS)]
    rows = pq.read_table(path, columns=columns).to_pylist()
    by_group: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_group.setdefault(row["group"], []).append(row)
    return tuple(
        StoredGroup(
            step=step,
            index=index,
            prompt_id=members[0]["prompt_id"],
            prompt=members[0]["prompt"],
            reference=members[0]["reference"],
            rollouts=tuple(_stored_rollout(row) for row in members),
        )
        for index, members in by_group.items()
    )


def truncate_after(run_dir: Path, step: int) -> None:
    """Remove the stored rollouts of later steps, because a resumed run makes them again."""
    for folder in (run_files.ROLLOUTS, run_files.EVALUATIONS):
        for stored in stored_steps(run_dir, folder):
            if stored > step:
                step_path(run_dir, stored, folder).unlink()


def thin(run_dir: Path, most_bytes: int) -> int:
    """Remove stored steps until the remaining steps together take at most `most_bytes`.

    The remaining steps stay spread over the run: each time, the step with the closest neighbours is removed. If
    several steps have equally close neighbours, the oldest of these steps is removed. The first and the last step of
    each folder are never removed, so the result may exceed the limit.

    Returns:
        The number of removed steps.
    """
    kept = {folder: list(stored_steps(run_dir, folder)) for folder in (run_files.ROLLOUTS, run_files.EVALUATIONS)}
    sizes = {
        (folder, step): step_path(run_dir, step, folder).stat().st_size for folder in kept for step in kept[folder]
    }
    total, removed = sum(sizes.values()), 0
    while total > most_bytes:
        inner = [
            (after - before, step, folder)
            for folder, steps in kept.items()
            for before, step, after in zip(steps, steps[1:], steps[2:], strict=False)
        ]
        if not inner:
            break
        _, step, folder = min(inner)
        step_path(run_dir, step, folder).unlink()
        kept[folder].remove(step)
        total -= sizes[folder, step]
        removed += 1
    return removed


def _rows(step: int, groups: Sequence[Group], advantages: Advantages) -> Iterable[dict[str, Any]]:
    for group_index, (group, row_of_advantages) in enumerate(zip(groups, advantages, strict=True)):
        shared = {
            "step": step,
            "group": group_index,
            "prompt_id": storable(group.prompt.id),
            "prompt": storable(group.prompt.text),
            "reference": _as_json(group.prompt.reference),
            "row": _as_json(dict(group.prompt.row)),
        }
        for sample, (rollout, advantage) in enumerate(zip(group.rollouts, row_of_advantages, strict=True)):
            yield {**shared, "sample": sample, **_rollout_columns(rollout), "advantage": _number(advantage)}


def _rollout_columns(rollout: Rollout) -> dict[str, Any]:
    completion = rollout.completion
    return {
        "completion": storable(completion.text),
        "completion_tokens": completion.sampled_tokens,
        "finish_reason": completion.finish_reason,
        "reward": _number(rollout.reward),
        "verdicts": [
            {
                "verifier": storable(name),
                "status": verdict.status.value,
                "score": verdict.score,
                "reason": storable(verdict.reason),
                "parts": [{"name": storable(part), "value": value} for part, value in verdict.parts.items()],
            }
            for name, verdict in rollout.verdicts.items()
        ],
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "spans": [
            {"start": span.start, "stop": span.stop, "policy_version": span.policy_version} for span in completion.spans
        ],
        **dialogue_columns(completion),
    }


def _stored_rollout(row: Mapping[str, Any]) -> StoredRollout:
    return StoredRollout(
        sample=row["sample"],
        completion=row["completion"],
        completion_tokens=row["completion_tokens"],
        finish_reason=row["finish_reason"],
        reward=row["reward"],
        advantage=row["advantage"],
        verdicts=tuple(
            StoredVerdict(
                verifier=verdict["verifier"],
                status=verdict["status"],
                score=verdict["score"],
                reason=verdict["reason"],
                parts=tuple((part["name"], part["value"]) for part in verdict["parts"]),
            )
            for verdict in row["verdicts"]
        ),
        policy_versions=tuple(sorted({span["policy_version"] for span in row["spans"]})),
        dialogue=stored_dialogue(row),
    )


def _number(value: float | None) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _as_json(value: Any) -> str:
    # `default=str` is needed because a dataset row may hold a date or a decimal. People read the row as text.
    return json.dumps(value, ensure_ascii=True, default=str)
