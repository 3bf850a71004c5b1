"""What several commands take: a config with overrides, and how much of an error to show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, for example configs/quickstart.yaml")]


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, for example train.steps=100")
]


Debug = Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")]
