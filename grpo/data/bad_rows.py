"""Rows that cannot be used: refuse them with their places, or leave them out and count them."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator

from grpo import config
from grpo.data.cells import BadRow
from grpo.data.row_files import Places

# Rows that a message names.
_SHOWN = 5
# Values of rows in a message: rows with the same problem and other values are counted together.
_VALUES = re.compile(r": ['\"].*$", re.DOTALL)


class BadRows:
    """Collects the problems of a source's rows."""

    def __init__(self, source: config.DatasetConfig, places: Places, where: str) -> None:
        """Collect for the section `where`."""
        self._places, self._where, self._drops = places, where, source.on_bad_row == "drop"
        self._problems: dict[int, str] = {}

    @contextlib.contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Note the problem of the row that is read in this context."""
        try:
            yield
        except BadRow as problem:
            self._problems[index] = str(problem)

    def left_out(self, rows: int) -> Counter[str]:
        """Return the number of rows that are left out, for each kind of problem.

        Args:
            rows: number of all rows.

        Raises:
            ValueError: there are bad rows, and they are not dropped, or no other row is left.
        """
        if self._problems and (not self._drops or len(self._problems) == rows):
            raise ValueError(self._refusal(rows))
        return Counter(_VALUES.sub("", problem) for problem in self._problems.values())

    def _refusal(self, rows: int) -> str:
        shown = [f"  - {self._places[index]}: {problem}" for index, problem in list(self._problems.items())[:_SHOWN]]
        count = len(self._problems)
        if count > len(shown):
            kinds = Counter(_VALUES.sub("", problem) for problem in self._problems.values())
            shown.append(f"  - and {count - len(shown)} more; all together: " + lines_of(kinds))
        remedy = f"mend the data, or leave such rows out with {self._where}.on_bad_row=drop"
        if count == rows:
            remedy = f"check the columns that {self._where} names"
        return f"{count} of {rows} rows of {self._where} cannot be used; {remedy}\n" + "\n".join(shown)


def lines_of(kinds: Counter[str]) -> str:
    """Return the number of rows of each kind of problem as text."""
    return "; ".join(f"{count} x {problem}" for problem, count in kinds.most_common())
