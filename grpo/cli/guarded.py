"""The error handling of commands: an expected failure prints a message and sets an exit code."""

from __future__ import annotations

from collections.abc import Callable

import typer
from rich.text import Text

from grpo.terminal import Terminal, literal

# Exit codes differ for a user's mistake and for a run that failed, so that scripts know when to retry.
EXIT_MISTAKE, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def guarded(job: Callable[[], None], debug: bool) -> None:
    """Run a command. An expected failure prints a message and sets an exit code, without a traceback."""
    try:
        job()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (ValueError, RuntimeError, TimeoutError, OSError) as failure:
        if debug:
            raise
        notes = getattr(failure, "__notes__", [])  # for example the path of the log
        message = Text.assemble((type(failure).__name__, "bold red"), ": ", literal("\n".join([str(failure), *notes])))
        Terminal(stderr=True, highlight=False).print(message, soft_wrap=True)
        raise typer.Exit(EXIT_MISTAKE if isinstance(failure, ValueError) else EXIT_FAILED) from failure
