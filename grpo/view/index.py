"""All stored completions of a run in memory, in columns, so that a filter is fast enough while a person types.

Numbers are NumPy arrays. Texts are Arrow arrays, which Arrow itself searches. The newest files are read first. A file
is read again only if it has changed. A reader always sees a complete snapshot, even while files are read.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grpo.report import run_files
from grpo.report.rollout_store import step_path, stored_steps
from grpo.view.columns import STATUSES, Columns, no_columns, read_columns
from rewards.verdict import Status

Order = Literal["newest", "oldest", "spread"]
# Number of files after which a snapshot is made, so that the page can show the newest steps before all files are read.
_FILES_AT_ONCE = 40
_READERS = 2
_REMEMBERED = 16
_FAILED_BITS = sum(1 << at for at, status in enumerate(STATUSES) if Status(status).failed)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on completions. All conditions must hold. A range includes both its ends.

    Attributes:
        statuses: the completion needs a verdict with one of these statuses; empty for any status.
        text: text that the completion or its prompt contains; upper and lower case do not matter.
    """

    statuses: frozenset[str] = frozenset()
    reward_low: float | None = None
    reward_high: float | None = None
    tokens_low: int | None = None
    tokens_high: int | None = None
    step_low: int | None = None
    step_high: int | None = None
    text: str = ""

    def __post_init__(self) -> None:
        for status in self.statuses:
            if status not in STATUSES:
                raise ValueError(f"a verdict's status is one of {', '.join(STATUSES)}, got {status!r}")


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search: numbers of the groups with a completion that passes the filter, in the requested order."""

    groups: np.ndarray[Any, Any]
    matches: np.ndarray[Any, Any]
    completions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Columns):
    """The columns of all files read so far, in the order of steps.

    Attributes:
        version: number that increases with every snapshot.
        step_R, step_N: step of each row and of each group.
    """

    version: int
    step_R: np.ndarray[Any, Any]
    step_N: np.ndarray[Any, Any]

    def search(self, wanted: Filter, order: Order = "newest") -> Found:
        """Find the groups in which a completion passes the filter."""
        passes_R = self._passes(wanted)
        matches_N = np.bincount(self.group_R[passes_R], minlength=len(self.first_N))
        groups = np.flatnonzero(matches_N)
        if order == "newest":
            groups = groups[np.lexsort((self.groups_N[groups], -self.step_N[groups]))]
        elif order == "spread":
            groups = groups[np.lexsort((self.groups_N[groups], -self.step_N[groups], -self.spread_N[groups]))]
        return Found(groups, matches_N[groups], int(passes_R.sum()))

    def _passes(self, wanted: Filter) -> np.ndarray[Any, Any]:
        passes_R = np.ones(len(self.step_R), dtype=bool)
        for column, low, high in (
            (self.step_R, wanted.step_low, wanted.step_high),
            (self.tokens_R, wanted.tokens_low, wanted.tokens_high),
            (self.reward_R, wanted.reward_low, wanted.reward_high),
        ):
            # An unknown reward (NaN) is outside every range.
            passes_R &= column >= low if low is not None else True
            passes_R &= column <= high if high is not None else True
        if wanted.statuses:
            bits = sum(1 << STATUSES.index(status) for status in wanted.statuses)
            passes_R &= (self.status_R & bits) != 0
        if wanted.text and len(passes_R):
            in_prompt_N = _occurs(self.prompt_N, wanted.text)
            passes_R &= _occurs(self.text_R, wanted.text) | in_prompt_N[self.group_R]
        return passes_R

    def rows(self, result: Found, offset: int, limit: int) -> list[dict[str, Any]]:
        """The list entries of up to `limit` groups, from number `offset` on."""
        shown = []
        for group, matches in zip(
            result.groups[offset : offset + limit], result.matches[offset : offset + limit], strict=True
        ):
            members = slice(int(self.first_N[group]), int(self.first_N[group] + self.count_N[group]))
            rewards = self.reward_R[members][~np.isnan(self.reward_R[members])]
            counts = np.bincount(self.first_status_R[members], minlength=len(STATUSES))
            shown.append(
                {
                    "step": int(self.step_N[group]),
                    "group": int(self.groups_N[group]),
                    "prompt_id": self.prompt_id_N[int(group)].as_py(),
                    "prompt": self.prompt_N[int(group)].as_py(),
                    "completions": int(self.count_N[group]),
                    "matches": int(matches),
                    "reward": float(rewards.mean()) if len(rewards) else None,
                    "spread": float(self.spread_N[group]),
                    "tokens": float(self.tokens_R[members].mean()),
                    # A completion counts once, as in `rollout/accuracy`: by the first verifier that judges its row.
                    "statuses": {
                        status: int(count)
                        for status, count in zip(STATUSES, counts[: len(STATUSES)], strict=True)
                        if count
                    },
                    "has_failed": bool((self.status_R[members] & _FAILED_BITS).any()),
                }
            )
        return shown


class RolloutIndex:
    """The index of a folder of stored completions. Any thread may read the index while another thread refreshes it."""

    def __init__(self, run_dir: Path, folder: str = run_files.ROLLOUTS, most_steps: int | None = None) -> None:
        """Prepare an empty index. No file is read yet.

        Args:
            run_dir: the run folder.
            folder: name of the folder in `run_dir` that holds the completions.
            most_steps: largest number of steps to read, spread over the stored steps; None reads all steps.
        """
        self._run_dir, self._folder, self._most_steps = run_dir, folder, most_steps
        # For each step: time and size of its file, and the columns of this file.
        self._parts: dict[int, tuple[tuple[int, int], Columns]] = {}
        self._refreshing = threading.Lock()
        self._remembered: dict[tuple[int, Filter, Order], Found] = {}
        self.snapshot = _join({}, 0)
        self.unread = 0
        self.problems: Mapping[int, str] = {}

    def refresh(self) -> None:
        """Read new and changed files, newest first, and forget removed files."""
        with self._refreshing:
            stamps = self._stamps()
            gone = self._parts.keys() - stamps.keys()
            stale = [step for step in sorted(stamps, reverse=True) if self._is_stale(step, stamps[step])]
            for step in gone:
                del self._parts[step]
            problems = {
                step: problem for step, problem in self.problems.items() if step in stamps and step not in stale
            }
            for begin in range(0, len(stale), _FILES_AT_ONCE):
                self.unread = len(stale) - begin
                self._read(stale[begin : begin + _FILES_AT_ONCE], stamps, problems)
                self._publish(problems)
            self.unread = 0
            if gone and not stale:
                self._publish(problems)

    def search(self, wanted: Filter, order: Order = "newest") -> tuple[Snapshot, Found]:
        """Search the current snapshot; return the snapshot and the result."""
        snapshot = self.snapshot
        key = (snapshot.version, wanted, order)
        result = self._remembered.get(key)
        if result is None:
            result = snapshot.search(wanted, order)
            # Keep the last results, because scrolling requests the same groups again and again.
            kept = [*self._remembered.items()][-_REMEMBERED + 1 :]
            self._remembered = {**dict(kept), key: result}
        return snapshot, result

    def _stamps(self) -> dict[int, tuple[int, int]]:
        stamps = {}
        for step in spread_over(stored_steps(self._run_dir, self._folder), self._most_steps):
            try:
                stat = step_path(self._run_dir, step, self._folder).stat()
            except FileNotFoundError:
                # The run removed the file in the meantime (report.rollouts_max_mib).
                continue
            stamps[step] = (stat.st_mtime_ns, stat.st_size)
        return stamps

    def _is_stale(self, step: int, stamp: tuple[int, int]) -> bool:
        return step not in self._parts or self._parts[step][0] != stamp

    def _read(self, steps: Sequence[int], stamps: Mapping[int, tuple[int, int]], problems: dict[int, str]) -> None:
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
            futures = {
                step: readers.submit(read_columns, step_path(self._run_dir, step, self._folder)) for step in steps
            }
        for step, future in futures.items():
            try:
                self._parts[step] = (stamps[step], future.result())
            except FileNotFoundError:
                self._parts.pop(step, None)
            except (pa.ArrowException, OSError) as problem:
                # An incomplete file must not hide the other files. The page names the incomplete file, which is read
                # again when it changes.
                self._parts[step] = (stamps[step], no_columns())
                problems[step] = f"{step_path(self._run_dir, step, self._folder).name} cannot be read: {problem}"

    def _publish(self, problems: Mapping[int, str]) -> None:
        self.snapshot = _join({step: columns for step, (_, columns) in self._parts.items()}, self.snapshot.version + 1)
        self.problems = dict(problems)


def spread_over(steps: Sequence[int], most: int | None) -> list[int]:
    """Choose at most `most` steps at about equal distances. The first and the last step are always chosen."""
    if most is None or len(steps) <= most:
        return list(steps)
    return sorted({steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)})


def _occurs(texts: pa.ChunkedArray, text: str) -> np.ndarray[Any, Any]:
    def search(chunks: Sequence[pa.Array]) -> np.ndarray[Any, Any]:
        part = pa.chunked_array(chunks, pa.large_string())
        contains: np.ndarray[Any, Any] = pc.match_substring(part, text, ignore_case=True).to_numpy()
        return contains

    # Arrow searches an array in one thread and releases Python's lock. So each of two threads searches half the chunks.
    half = texts.num_chunks // 2
    with concurrent.futures.ThreadPoolExecutor(_READERS) as searchers:
        return np.concatenate([*searchers.map(search, (texts.chunks[:half], texts.chunks[half:]))])


def _join(parts: Mapping[int, Columns], version: int) -> Snapshot:
    steps = sorted(parts)
    ordered = [no_columns(), *(parts[step] for step in steps)]
    rows, groups = (
        np.cumsum([len(part.group_R) for part in ordered]),
        np.cumsum([len(part.first_N) for part in ordered]),
    )

    def joined(name: str, offsets: Sequence[int] | None = None) -> np.ndarray[Any, Any]:
        arrays = [getattr(part, name) for part in ordered]
        if offsets is not None:
            arrays = [array + offset for array, offset in zip(arrays, offsets, strict=True)]
        return np.concatenate(arrays)

    def texts(name: str) -> pa.ChunkedArray:
        return pa.chunked_array([getattr(part, name) for part in ordered], pa.large_string())

    return Snapshot(
        version=version,
        step_R=np.repeat([0, *steps], [len(part.group_R) for part in ordered]),
        group_R=joined("group_R", [0, *groups[:-1]]),
        reward_R=joined("reward_R"),
        tokens_R=joined("tokens_R"),
        status_R=joined("status_R"),
        first_status_R=joined("first_status_R"),
        text_R=texts("text_R"),
        first_N=joined("first_N", [0, *rows[:-1]]),
        count_N=joined("count_N"),
        groups_N=joined("groups_N"),
        step_N=np.repeat([0, *steps], [len(part.first_N) for part in ordered]),
        spread_N=joined("spread_N"),
        prompt_id_N=texts("prompt_id_N"),
        prompt_N=texts("prompt_N"),
    )
