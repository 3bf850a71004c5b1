"""Text on a terminal: what data, models, servers and users wrote is shown, never obeyed.

A terminal obeys escape sequences (links, titles, cleared screens), and rich obeys markup: `[/INST]` of a chat template
is to it the end of a style that never began. So text reaches a console as `literal`, tables are `LiteralTable`s, and
the console is a `Terminal`, which knows no markup and names what slipped through.
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
    """The text as it is, whatever brackets are in it, with every hidden or commanding character named."""
    return Text(visible(text), style)


class LiteralTable(Table):
    """A table whose title, heads and cells are literal where they are strings."""

    def __init__(
        self, *headers: str, title: str | None = None, title_style: str = "table.title", **settings: Any
    ) -> None:
        """Like a `Table`, with the title on the left."""
        said = None if title is None else literal(title, title_style)
        super().__init__(*(Column(literal(head)) for head in headers), title=said, title_justify="left", **settings)

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """Add a row of cells."""
        super().add_row(*(literal(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


class Terminal(Console):
    """A console without markup and emoji codes, which names every control character that it is given as text."""

    def __init__(self, **settings: Any) -> None:
        """Like a `Console`."""
        super().__init__(markup=False, emoji=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable; cursor movements are segments of another kind than text, and stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, with what the error quotes made visible. For `sys.excepthook`."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
