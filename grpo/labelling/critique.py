"""`grpo critique`: a model criticises drafts by a principle and revises them (Constitutional AI, arXiv:2212.08073)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grpo.labelling.items import prompts_of_run, rows_of_file
from grpo.labelling.judged import options_in
from grpo.report.json_lines import JsonLines, complete_lines
from rewards.judges.client import JudgeClient, JudgeSettings, Spend, critic_settings
from rewards.judges.questions import critique, revision
from rewards.judges.rubric import draw_principle
from rewards.judges.server import JudgeFailed

COLUMNS = ("prompt", "draft", "principle", "critique", "revision")


@dataclass(frozen=True, slots=True)
class CritiqueRequest:
    """What is criticised, and where the rows go.

    Attributes:
        source: file with rows as JSON lines, or folder of a run. The first stored completion of each group of a run is
            the draft.
        critic: YAML file of the critic.
        out: file of the rows.
        prompt: column with the prompt.
        draft: column with the draft; None lets the model write the draft.
        limit: largest number of prompts; None is all.
        concurrency: number of rows at the same time.
    """

    source: Path
    critic: Path
    out: Path
    prompt: str = "prompt"
    draft: str | None = None
    limit: int | None = None
    concurrency: int = 16


@dataclass(slots=True)
class CritiqueReport:
    """What was written and paid for: numbers of rows, of tokens, and of failures for each reason."""

    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def paid(self, spend: Spend) -> None:
        """Count the tokens of an answer."""
        self.prompt_tokens += spend.prompt_tokens
        self.completion_tokens += spend.completion_tokens


def write_critiques(
    request: CritiqueRequest, say: Callable[[str], None], client: JudgeClient | None = None
) -> CritiqueReport:
    """Write a row for each prompt that has none yet.

    A row whose critique or revision failed is left out, and the same command tries it again.

    Raises:
        ValueError: the critic's options or the rows are wrong, or there is no principle.
        RuntimeError: no row could be written.
    """
    settings = critic_settings(options_in(request.critic))
    drafts = _drafts(request)
    done = _done(request.out)
    left = [each for each in drafts if each not in done]
    say(f"{len(drafts):,} prompts, {len(drafts) - len(left):,} of them have a row in {request.out}")
    report = CritiqueReport()
    with JsonLines(request.out) as file:
        keep = _keeper(file, report)
        asyncio.run(_all_rows(client or JudgeClient(settings), settings, left, keep, request.concurrency, report))
    failed = report.reasons.total()
    say(
        f"written: {request.out}: {report.rows:,} rows; failed: {failed:,}; paid: {report.prompt_tokens:,} + "
        f"{report.completion_tokens:,} tokens"
    )
    for reason, count in report.reasons.most_common(3):
        say(f"  {count} times: {reason}")
    if left and not report.rows:
        raise RuntimeError(
            f"none of {len(left)} prompts has a critique and a revision; the lines above have the reasons"
        )
    return report


def _drafts(request: CritiqueRequest) -> list[tuple[str, str | None]]:
    """The prompts with their drafts, each pair once."""
    if request.source.is_dir():
        drafts: list[tuple[str, str | None]] = [
            (prompt, answers[0]) for prompt, answers in prompts_of_run(request.source)
        ]
    else:
        rows = rows_of_file(request.source)
        columns = [request.prompt, *([request.draft] if request.draft else [])]
        for place, row in rows:
            for column in columns:
                if not isinstance(row.get(column), str) or not row[column].strip():
                    raise ValueError(
                        f"{place}: the row has no text in the column {column!r}; it has "
                        f"{', '.join(row)}; name the columns with --prompt and --draft"
                    )
        drafts = [(row[request.prompt], row[request.draft] if request.draft else None) for _, row in rows]
    if not drafts:
        raise ValueError(f"{request.source} has no prompts")
    return list(dict.fromkeys(drafts))[: request.limit]


def _done(path: Path) -> set[tuple[str, str | None]]:
    rows = [json.loads(line) for line in complete_lines(path)]
    if bad := [row for row in rows if not isinstance(row, dict) or not set(COLUMNS) <= set(row)]:
        raise ValueError(f"{path} has other rows ({json.dumps(bad[0])[:120]}); choose another --out")
    # A draft that the model wrote is known only by its prompt.
    return {(row["prompt"], row["draft"]) for row in rows} | {(row["prompt"], None) for row in rows}


def _keeper(file: JsonLines, report: CritiqueReport) -> Callable[[tuple[str, ...]], None]:
    def keep(values: tuple[str, ...]) -> None:
        file.write(json.dumps(dict(zip(COLUMNS, values, strict=True))) + "\n")
        report.rows += 1

    return keep


async def _all_rows(
    client: JudgeClient,
    settings: JudgeSettings,
    drafts: Sequence[tuple[str, str | None]],
    keep: Callable[[tuple[str, ...]], None],
    concurrency: int,
    report: CritiqueReport,
) -> None:
    limit = asyncio.Semaphore(concurrency)

    async def row(prompt: str, draft: str | None) -> None:
        async with limit:
            try:
                if draft is None:
                    draft, spend = await client.answer(prompt)
                    report.paid(spend)
                principle = draw_principle(settings.principles, settings.seed, prompt)
                criticism, spend = await client.write(critique(prompt, draft, principle))
                report.paid(spend)
                revised, spend = await client.write(revision(prompt, draft, principle, criticism))
                report.paid(spend)
            except JudgeFailed as problem:
                report.reasons[str(problem)] += 1
                return
        keep((prompt, draft, principle, criticism, revised))

    await asyncio.gather(*(row(*each) for each in drafts))
