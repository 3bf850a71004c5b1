"""The arguments and options of several commands: config, overrides, log level, debug."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grpo.config.section import LogLevel

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, for example configs/quickstart.yaml")]


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, for example train.steps=100")
]


Debug = Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")]


LogLevelOption = Annotated[
    LogLevel | None, typer.Option("--log-level", help="lowest level of the lines in the folder's logs/")
]


def with_log_level(overrides: list[str] | None, level: LogLevel | None) -> list[str]:
    """Return the overrides of a job, with the value of `--log-level` if it is given."""
    return [*(overrides or []), *([f"report.log_level={level}"] if level else [])]
