"""How a command of the command line fails: one message and an exit code."""

from __future__ import annotations

from collections.abc import Callable

import typer
from rich.text import Text

from grpo.terminal import Terminal, literal

# A user's mistake, and a run that could not go on: distinct for scripts that retry.
EXIT_MISTAKE, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def guarded(job: Callable[[], None], debug: bool) -> None:
    """Run a command; an expected failure is one message and an exit code, not a traceback."""
    try:
        job()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (ValueError, RuntimeError, TimeoutError, OSError) as failure:
        if debug:
            raise
        notes = getattr(failure, "__notes__", [])  # such as where the log is
        told = Text.assemble((type(failure).__name__, "bold red"), ": ", literal("\n".join([str(failure), *notes])))
        Terminal(stderr=True, highlight=False).print(told, soft_wrap=True)
        raise typer.Exit(EXIT_MISTAKE if isinstance(failure, ValueError) else EXIT_FAILED) from failure
