"""The commands for a run that exists: view, audit and push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grpo.cli.guarded import guarded
from grpo.cli.options import Debug
from grpo.terminal import Terminal, literal


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, for example runs/quickstart")],
    verifier: Annotated[
        list[str] | None, typer.Option(help="verifier to audit, by its name in the run; default: `math` and `numeric`")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="largest number of verdicts; if more, a sample")] = 20_000,
    show: Annotated[int, typer.Option(min=0, help="disagreements to print of each kind")] = 3,
    deadline_s: Annotated[float, typer.Option(min=0.1, help="seconds after which Math-Verify is killed")] = 5.0,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="people's labels to compare with, in place of Math-Verify")
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="with --labels: YAML file of a judge, in place of the verifiers"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Grade a run's stored rollouts again with Math-Verify (extra `audit`), and show where the two disagree.

    With `--labels`, the run's verdicts are compared with people's labels: labels of `grpo label`, preference rows, or
    rows of `prompt`, `completion` and `label`. `--judge` compares a judge before a run pays for it. Differences are
    written to `label_audit.jsonl`.

    The rates of false positives and false negatives are estimates with 95 % intervals. Math-Verify makes errors
    too, so read the texts. All disagreements are written to `audit.jsonl` in the run's folder.
    """

    def job() -> None:
        if labels is not None:
            from grpo.labelling.label_audit import audit_labels

            audit_labels(run, labels, Terminal(), verifiers=verifier or (), judge=judge, show=show)
            return
        if judge is not None:
            raise ValueError("--judge needs --labels FILE, people's labels to compare the judge with")
        from grpo.evaluation.audit import audit_run

        audit_run(run, Terminal(), verifiers=verifier or (), limit=limit, show=show, deadline_s=deadline_s)

    guarded(job, debug)


def push(
    policy: Annotated[str, typer.Argument(metavar="RUN", help="run (its newest policy), checkpoint, or policy folder")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="name on the Hugging Face hub")],
    public: Annotated[bool, typer.Option("--public", help="a new repository is public; by default private")] = False,
    message: Annotated[str, typer.Option(help="message of the commit")] = "A policy trained with VeriGRPO",
    debug: Debug = False,
) -> None:
    """Push a policy to the Hugging Face hub. No other command sends a policy anywhere.

    It needs a token that may write: `hf auth login`, or HF_TOKEN. An existing repository gets a new commit and stays
    private or public, as it is.
    """

    def job() -> None:
        from grpo.evaluation.model import find_policy
        from grpo.policy.push import push_policy

        url = push_policy(Path(find_policy(policy)), repository, public=public, message=message)
        Terminal().print(literal(f"pushed: {url}"), soft_wrap=True)

    guarded(job, debug)


def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs, for example runs/quickstart")],
    host: Annotated[
        str, typer.Option(help="address to serve on; any other address serves a network, and needs a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port")] = 8642,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="write the page as one file, and serve nothing")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="write the curves as PNG, and serve nothing")
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="need a token on 127.0.0.1 too, which other users of this machine can reach")
    ] = False,
    debug: Debug = False,
) -> None:
    """Look at runs in a browser: curves, groups of completions, what was learned, signs of reward hacking.

    The page is served to this machine only. It needs no network, and follows runs in progress (docs/looking.md).
    """

    def job() -> None:
        from grpo.view.runs import open_runs

        console = Terminal()
        opened = open_runs(runs)
        if export is not None:
            from grpo.view.page import export as write

            console.print(f"written: {write(runs, export)}", soft_wrap=True)
        if png is not None:
            from grpo.report.figures import overview

            for path in overview(runs, png):
                console.print(f"written: {path}", soft_wrap=True)
        if export is None and png is None:
            from grpo.view.server import serve

            serve(
                opened,
                host=host,
                port=port,
                say=lambda line: console.print(literal(line), soft_wrap=True),
                ask_token=token,
            )

    guarded(job, debug)
