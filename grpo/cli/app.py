"""The command line: `grpo` and its commands."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from grpo.cli.evaluation import eval_app
from grpo.cli.jobs import dpo, launch, reward, sft, train
from grpo.cli.labelling import critique, label
from grpo.cli.looking import audit, push, view
from grpo.cli.planning import check, config, profile, simulate
from grpo.terminal import show_traceback

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Teach a language model to reason by reinforcement learning from verifiable rewards.

Every job takes a YAML file and any number of dotted overrides, for example

`grpo train configs/quickstart.yaml rollout.group_size=16 resume=auto`

Start with `grpo check CONFIG`: it finds every problem at once and claims nothing.""",
)


for _command in (
    train,
    sft,
    dpo,
    reward,
    check,
    launch,
    view,
    label,
    critique,
    audit,
    push,
    profile,
    simulate,
    config,
):
    app.command()(_command)
app.add_typer(eval_app, name="eval")


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"verigrpo {version('verigrpo')}")
        except PackageNotFoundError:
            print("verigrpo, from a folder of source files that is not installed")
        raise typer.Exit


@app.callback()
def _start(
    show_version: Annotated[
        bool, typer.Option("--version", help="show the version and end", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    # An unexpected error may also quote a completion. So its traceback is escaped for the terminal.
    sys.excepthook = show_traceback
    # A module with a generator or verifier may be in the current folder.
    sys.path.append(os.getcwd())
