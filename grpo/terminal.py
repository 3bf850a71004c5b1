"""Show text of data, models, servers and users on a terminal. The text cannot control the terminal.

A terminal executes escape sequences: they make links, set titles and clear the screen. The library rich interprets
markup: it would read `[/INST]` of a chat template as the end of a style. So text is printed as `literal`, tables are
`LiteralTable`s, and the console is a `Terminal`. A `Terminal` interprets no markup, and replaces the remaining control
characters by their names.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from grpo.visible import visible


def literal(text: str, style: str = "") -> Text:
    """Return the text without markup. Brackets stay; names replace invisible characters and control characters."""
    return Text(visible(text), style)


class LiteralTable(Table):
    """A table that shows the strings in its title, headers and cells as literal text."""

    def __init__(
        self, *headers: str, title: str | None = None, title_style: str = "table.title", **settings: Any
    ) -> None:
        """Make the table like a rich `Table`, with the title on the left."""
        shown = None if title is None else literal(title, title_style)
        super().__init__(*(Column(literal(head)) for head in headers), title=shown, title_justify="left", **settings)

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """Add a row of cells."""
        super().add_row(*(literal(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


class Terminal(Console):
    """A console without markup and emoji codes. In text, it replaces control characters by their names."""

    def __init__(self, **settings: Any) -> None:
        """Make the console like a rich `Console`."""
        super().__init__(markup=False, emoji=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable. Rich's own control segments (cursor movements) stay unchanged."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, with names in place of invisible characters. For `sys.excepthook`."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
