"""The commands for signals that people or judges give: label and critique."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from grpo.cli.guarded import guarded
from grpo.cli.options import Debug
from grpo.terminal import Terminal, literal


def _say(line: str) -> None:
    Terminal().print(literal(line), soft_wrap=True)


def label(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, or a file with prompt and answers")],
    judge: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="YAML file of a judge, who labels in place of a person")
    ] = None,
    labeller: Annotated[str | None, typer.Option(help="your name in the labels; default: the user's name")] = None,
    show: Annotated[int, typer.Option(min=2, max=9, help="answers of an item; from 3 on they are ranked")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="largest number of items; default: all")] = None,
    seed: Annotated[int, typer.Option(help="seed of the choice of answers and the order of items")] = 0,
    labels: Annotated[Path | None, typer.Option(help="file of the labels; default: labels.jsonl in the run")] = None,
    out: Annotated[Path | None, typer.Option(help="file of the preference rows; default: in the run")] = None,
    rankings: Annotated[bool, typer.Option("--rankings", help="write rankings in place of pairs")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="questions to the judge at the same time")] = 16,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port")] = 0,
    debug: Debug = False,
) -> None:
    """Compare the stored answers of a run in a browser, with the keyboard, and write rows for `grpo dpo`.

    The page is served to this machine only, and its address ends in a token. Every label is kept at once; the same
    command continues. With `--judge`, a language model compares each pair in both orders, and the command reports its
    position bias and its agreement with the people who labelled the same run (docs/preferences.md, docs/judges.md).
    """

    def job() -> None:
        from grpo.labelling.command import LabelRequest, label_by_judge, label_by_people

        request = LabelRequest(source, labeller or getpass.getuser(), show, limit, seed, labels, out, rankings)
        if judge is None:
            label_by_people(request, _say, host="127.0.0.1", port=port)
        else:
            label_by_judge(request, judge, _say, concurrency=concurrency)

    guarded(job, debug)


def critique(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="rows with a prompt, or a run's folder")],
    critic: Annotated[Path, typer.Option(metavar="CONFIG", help="YAML file with url, model and principles")],
    out: Annotated[Path, typer.Option(metavar="ROWS", help="file of the rows; the same command continues it")],
    prompt: Annotated[str, typer.Option(help="column with the prompt")] = "prompt",
    draft: Annotated[
        str | None, typer.Option(help="column with the draft; default: the model writes the draft")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="largest number of prompts; default: all")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="rows at the same time")] = 16,
    debug: Debug = False,
) -> None:
    """Let a language model criticise drafts by the principles of a constitution and revise them, for `grpo sft`.

    Each prompt gets a principle that the seed draws. The rows have prompt, draft, principle, critique and revision.
    With `data.response=revision` they train a policy (docs/judges.md).
    """

    def job() -> None:
        from grpo.labelling.critique import CritiqueRequest, write_critiques

        request = CritiqueRequest(source, critic, out, prompt, draft, limit, concurrency)
        write_critiques(request, _say)

    guarded(job, debug)
