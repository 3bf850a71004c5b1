"""Read a file of stored completions into columns. `grpo.view.index` keeps the columns of all files and joins them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rewards.verdict import Status

STATUSES = tuple(status.value for status in Status)
_COLUMNS = (
    "group",
    "prompt_id",
    "prompt",
    "completion",
    "completion_tokens",
    "reward",
    "verdicts.list.element.status",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns of R rows and of N groups. A row is a completion. The groups are in the order of their rows.

    Attributes:
        group_R: number of the row's group, counted from 0.
        reward_R: reward of the row; NaN if the reward is not known.
        status_R: bit i is set if a verdict of the row has status STATUSES[i].
        first_status_R: i if the row's first verdict, which decides accuracy, has status STATUSES[i].
        text_R, prompt_id_N, prompt_N: Arrow arrays; after files were joined, in chunks.
        first_N, count_N: first row of the group, and number of its rows.
        groups_N: index of the group in its step.
        spread_N: variance of the group's rewards.
    """

    group_R: np.ndarray[Any, Any]
    reward_R: np.ndarray[Any, Any]
    tokens_R: np.ndarray[Any, Any]
    status_R: np.ndarray[Any, Any]
    first_status_R: np.ndarray[Any, Any]
    text_R: pa.Array | pa.ChunkedArray
    first_N: np.ndarray[Any, Any]
    count_N: np.ndarray[Any, Any]
    groups_N: np.ndarray[Any, Any]
    spread_N: np.ndarray[Any, Any]
    prompt_id_N: pa.Array | pa.ChunkedArray
    prompt_N: pa.Array | pa.ChunkedArray


def no_columns() -> Columns:
    """The columns of a file without rows."""
    whole, real, text = np.zeros(0, np.int64), np.zeros(0), pa.array([], pa.large_string())
    return Columns(
        group_R=whole,
        reward_R=real,
        tokens_R=whole,
        status_R=whole,
        first_status_R=whole,
        text_R=text,
        first_N=whole,
        count_N=whole,
        groups_N=whole,
        spread_N=real,
        prompt_id_N=text,
        prompt_N=text,
    )


def read_columns(path: Path) -> Columns:
    """Read one file.

    Raises:
        OSError: the file is missing or cannot be read.
        pa.ArrowException: the file is incomplete or has a different format.
    """
    with pq.ParquetFile(path) as file:
        missing = {name.split(".")[0] for name in _COLUMNS} - set(file.schema_arrow.names)
        if missing:
            raise pa.ArrowInvalid(f"it has no column {', '.join(sorted(missing))}")
        table = file.read(columns=list(_COLUMNS), use_threads=False)
    if not table.num_rows:
        return no_columns()
    index = table["group"].to_numpy()
    # A group's rows are written one after the other.
    first_N = np.flatnonzero(np.r_[True, index[1:] != index[:-1]])
    count_N = np.diff(np.r_[first_N, len(index)])
    group_R = np.repeat(np.arange(len(first_N)), count_N)
    reward_R = table["reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    known_R = ~np.isnan(reward_R)
    sums = [
        np.bincount(group_R, weights=np.where(known_R, values, 0.0))
        for values in (np.ones_like(reward_R), np.nan_to_num(reward_R), np.nan_to_num(reward_R) ** 2)
    ]
    status_R, first_status_R = _statuses(table["verdicts"])
    known_N, sum_N, square_N = np.maximum(sums[0], 1), sums[1], sums[2]
    return Columns(
        group_R=group_R,
        reward_R=reward_R,
        tokens_R=table["completion_tokens"].to_numpy(),
        status_R=status_R,
        first_status_R=first_status_R,
        text_R=table["completion"].combine_chunks().cast(pa.large_string()),
        first_N=first_N,
        count_N=count_N,
        groups_N=index[first_N],
        spread_N=square_N / known_N - (sum_N / known_N) ** 2,
        prompt_id_N=table["prompt_id"].take(first_N).combine_chunks().cast(pa.large_string()),
        prompt_N=table["prompt"].take(first_N).combine_chunks().cast(pa.large_string()),
    )


def _statuses(verdicts: pa.ChunkedArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """`status_R` and `first_status_R`. A row without verdicts has no bit, and `len(STATUSES)` as its first status."""
    rows = pc.list_parent_indices(verdicts).to_numpy()
    statuses = pc.struct_field(pc.list_flatten(verdicts), "status")
    is_first = np.r_[True, rows[1:] != rows[:-1]][: len(rows)]
    bits_R, first_R = np.zeros(len(verdicts), np.uint8), np.full(len(verdicts), len(STATUSES), np.uint8)
    for at, status in enumerate(STATUSES):
        has_status = pc.equal(statuses, status).to_numpy(zero_copy_only=False)
        # `rows` may contain a row several times. `|=` with an index array still sets the bit of each such row.
        bits_R[rows[has_status]] |= 1 << at
        first_R[rows[has_status & is_first]] = at
    return bits_R, first_R
