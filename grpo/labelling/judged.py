"""Labels of a judge: both orders of each pair of answers, and how much the order decided."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo.config.section import load_yaml
from grpo.labelling.items import LabelItem
from grpo.labelling.labels import JUDGE, Label
from rewards.checks.audit import Rate, wilson
from rewards.judges.client import JudgeClient, JudgeSettings, Spend, judge_settings
from rewards.judges.questions import FIRST, SECOND, TIE
from rewards.judges.server import JudgeFailed


@dataclass(slots=True)
class JudgeReport:
    """What the judge did.

    Attributes:
        compared: number of pairs of answers, each compared in both orders.
        turned: number of these pairs in which the order decided: the judge preferred the answer in the same place
            twice, or had a preference only once. They count as ties.
        first: number of single comparisons that preferred the answer in the first place.
        decided: number of single comparisons that preferred an answer.
        failed: number of items without a label, because an answer of the judge could not be used.
        reasons: number of failures for each reason.
        prompt_tokens: tokens of the questions that were paid for.
        completion_tokens: tokens of the answers that were paid for.
        cached: number of single comparisons whose answer came from the cache.
    """

    compared: int = 0
    turned: int = 0
    first: int = 0
    decided: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: int = 0
    reasons: Counter[str] | None = None

    @property
    def position_bias(self) -> Rate:
        """Share of the first place among the decided comparisons; without bias it is 0.5, as each pair is turned."""
        return wilson(self.first, self.decided)

    @property
    def turned_share(self) -> Rate:
        """Share of the pairs in which the order decided."""
        return wilson(self.turned, self.compared)

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [
            f"compared: {self.compared:,} pairs in both orders; {self.cached:,} answers from the cache; paid: "
            f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens",
            f"position bias: the first place won {self.position_bias} of the decided comparisons (0.5 without bias)",
            f"order decided: {self.turned_share} of the pairs; they count as ties",
        ]
        if self.failed:
            lines.append(f"failed: {self.failed:,} items have no label; run the command again to ask again")
            lines += [f"  {count} times: {reason}" for reason, count in (self.reasons or Counter()).most_common(3)]
        return lines


def read_judge(path: Path) -> JudgeSettings:
    """Read the YAML file of a judge: the options of the verifier `judge` (docs/judges.md), without `compare`.

    Raises:
        ValueError: the file cannot be read, or an option is wrong.
    """
    return judge_settings(options_in(path))


def options_in(path: Path) -> dict[str, Any]:
    """Read the options of a judge or a critic from a YAML file.

    Raises:
        ValueError: the file cannot be read, or holds no keys.
    """
    try:
        options: Any = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ValueError(f"cannot read the judge's file {path}: {problem.strerror}") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"the judge's file {path} is not YAML: {' '.join(str(problem).split())}") from problem
    if not isinstance(options, Mapping):
        raise ValueError(f"the judge's file {path} has no keys; it needs url and model")
    return {str(name): value for name, value in options.items()}


def labeller_of(settings: JudgeSettings) -> str:
    """The judge's name among the labellers."""
    return f"{JUDGE}{settings.server.model}"


def judge_items(
    client: JudgeClient,
    items: Sequence[LabelItem],
    keep: Callable[[Label], None],
    *,
    concurrency: int = 16,
) -> JudgeReport:
    """Let a judge label items, several at a time.

    Of three and more answers every pair is compared, and the answers are ranked by the number of pairs that they win.

    Args:
        client: the judge.
        items: items without a label of this judge.
        keep: is called with each label as soon as the label is complete.
        concurrency: number of questions at the same time.
    """
    report = JudgeReport(reasons=Counter())
    asyncio.run(_judge_all(client, items, keep, concurrency, report))
    return report


async def _judge_all(
    client: JudgeClient,
    items: Sequence[LabelItem],
    keep: Callable[[Label], None],
    concurrency: int,
    report: JudgeReport,
) -> None:
    limit = asyncio.Semaphore(concurrency)

    async def compare(prompt: str, first: str, second: str) -> str:
        async with limit:
            better, _, spend = await client.compare(prompt, first, second)
        _count(report, better, spend)
        return better

    async def label(item: LabelItem) -> None:
        pairs = list(itertools.combinations(item.answers, 2))
        asked = [(item.prompt, *order) for pair in pairs for order in (pair, pair[::-1])]
        answers = await asyncio.gather(*(compare(*each) for each in asked), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, JudgeFailed):
                report.failed += 1
                assert report.reasons is not None
                report.reasons[str(answer)] += 1
                return
            if isinstance(answer, BaseException):
                raise answer
        points = dict.fromkeys(item.answers, 0)
        for number, (first, second) in enumerate(pairs):
            outcome = (str(answers[2 * number]), str(answers[2 * number + 1]))
            better = {(FIRST, SECOND): first, (SECOND, FIRST): second}.get(outcome)
            report.compared += 1
            report.turned += better is None and outcome != (TIE, TIE)
            for answer in (first, second):
                points[answer] += 2 * (answer == better) + (better is None)
        keep(Label(item.id, labeller_of(client.settings), item.prompt, _places(points)))

    # Few items are under way at a time, so that an interrupted command has labels and not only begun items.
    for start in range(0, len(items), concurrency):
        await asyncio.gather(*(label(item) for item in items[start : start + concurrency]))


def _count(report: JudgeReport, better: str, spend: Spend) -> None:
    report.first += better == FIRST
    report.decided += better in (FIRST, SECOND)
    report.prompt_tokens += spend.prompt_tokens
    report.completion_tokens += spend.completion_tokens
    report.cached += spend.cached


def _places(points: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(answer for answer, count in points.items() if count == level)
        for level in sorted(set(points.values()), reverse=True)
    )
