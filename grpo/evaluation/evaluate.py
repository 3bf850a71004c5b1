"""`grpo eval`: evaluate a model on tasks, and store every completion that the results are computed from.

An evaluation uses the generators, verifiers and sandbox of training. It stores each completion as soon as the verdict
arrives. It computes the results from the stored completions only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from grpo.config.evaluation import EvalConfig, TaskConfig
from grpo.evaluation.card import CARD, close_card, open_card
from grpo.evaluation.comparability import Comparability, comparability_of
from grpo.evaluation.engine_sampler import EngineSampler
from grpo.evaluation.export import export
from grpo.evaluation.groups import Judging
from grpo.evaluation.jobs import TaskJob, leave_out, prepare, spec_of
from grpo.evaluation.metrics import TaskMetrics, check_failures, task_metrics
from grpo.evaluation.playing import ConversationSampler
from grpo.evaluation.problems import repeats_line
from grpo.evaluation.progress import EvalProgress, results_table
from grpo.evaluation.questions import NO_COMPLETION, Question, Sample, Sampler
from grpo.evaluation.store import (
    LINES,
    TABLE,
    CompletionStore,
    Judged,
    Key,
    Record,
    file_digest,
    missing_keys,
    wanted_keys,
    write_json,
    write_table,
)
from grpo.evaluation.votes import Call, answers_of, vote
from grpo.report.logs import driver_log
from grpo.terminal import literal
from grpo.types import SamplingParams
from rewards.judging import verdicts_wait_s
from rewards.pool import VerifierPool
from rewards.verdict import Status, Verdict

Done = queue.SimpleQueue[tuple[Key, Sample, Future[Verdict]]]
METRICS, RESULTS = "metrics.json", "results.json"

logger = logging.getLogger(__name__)


def evaluate(settings: EvalConfig, tasks: Sequence[TaskConfig], console: Console) -> dict[str, TaskMetrics]:
    """Evaluate a model on tasks, or resume an evaluation that was stopped. Print and write the results.

    Raises:
        ValueError: there is no such model or data, the settings do not fit, or the folder has another evaluation.
        TimeoutError: no completion, or no verdict, came within its deadline.
        RuntimeError: an endpoint refuses, or more than `max_failure_share` of the verdicts failed.
    """
    jobs, open_sampler = prepare(settings, tasks)
    for job in jobs:
        name, longest = job.task.name, job.sampling.max_tokens
        room = job.room.line(name, len(job.problems), longest) if job.room else job.warning
        for line in filter(None, (room, repeats_line(name, job.problems))):
            console.print(literal(line, "yellow"), soft_wrap=True)
    jobs = [leave_out(job, settings, console) for job in jobs]
    results: dict[str, TaskMetrics] = {}
    tables: dict[str, list[Judged]] = {}
    cards = {}
    comparable: list[Comparability] = []
    with contextlib.ExitStack() as opened:
        opened.enter_context(driver_log(Path(settings.folder), settings.log_level))
        sampler: Sampler | None = None
        for task, job in zip(tasks, jobs, strict=True):
            with CompletionStore(job.folder / LINES) as store, _pool(settings, job) as pool:
                card = open_card(job.folder, job.identity, settings, job.task, job.sampling.k)
                _check_problems(job, store.records)
                missing = missing_keys(
                    [problem.id for problem in job.problems], settings.seeds, job.sampling.k, store.records
                )
                _judge_again(job, store, pool)
                logger.info("task %s: %d completions to sample", job.task.name, len(missing))
                if missing:
                    if sampler is None:
                        console.print(literal(f"starting to sample from {settings.model}"), soft_wrap=True)
                        sampler = opened.enter_context(open_sampler())
                    with _player(job, sampler) as player:
                        _sample(job, missing, player, store, pool, settings, console)
                    if isinstance(player, ConversationSampler):
                        card["first_prompt"] = player.first_prompt
                        write_json(job.folder / CARD, card)
                rows, undecided = _rows(job, store.records, settings, pool)
            check_failures(job.task.name, rows, settings.max_failure_share)
            comparable.append(comparability_of(task, job, settings))
            card["comparability"] = comparable[-1].as_json()
            metrics = _write_results(job, card, rows, undecided)
            results[job.task.name], tables[job.task.name], cards[job.task.name] = metrics, rows, card
    folder = Path(settings.folder)
    write_json(
        folder / RESULTS,
        {"model": settings.model, "tasks": {name: metrics.as_json() for name, metrics in results.items()}},
    )
    exported = export(folder, settings.model, cards, results, tables)
    console.print(results_table(settings.model, results))
    for line in filter(None, (each.line() for each in comparable)):
        console.print(literal(line), soft_wrap=True)
    console.print(literal(f"{folder}: completions, {METRICS} and {CARD} of each task; {exported}"), soft_wrap=True)
    return results


def _write_results(job: TaskJob, card: dict[str, Any], rows: Sequence[Judged], undecided: int) -> TaskMetrics:
    """Compute the metrics of a task, and write them with the table and the card."""
    votes = answers_of(job.task) is not None
    metrics = task_metrics(job.task.name, rows, votes=votes, measures=job.task.measures)
    write_table(job.folder / TABLE, rows)
    left_out = {"left_out": len(job.left_out)} if job.left_out else {}
    write_json(job.folder / METRICS, {**metrics.as_json(), "undecided_pairs": undecided, **left_out})
    first = job.prompts[0].text if job.prompts else job.problems[0].question
    if job.task.talks:
        # A conversation's first prompt has the tools, and what `reset` said. The card has had it since it was played.
        first = card.get("first_prompt", first)
    files = {name: file_digest(job.folder / name) for name in (LINES, TABLE)}
    context = asdict(job.room) if job.room else None
    close_card(job.folder, card, job.problems, first, files, job.left_out, context)
    logger.info("task %s has ended: %s", job.task.name, {**metrics.as_json(), **left_out})
    return metrics


def _player(job: TaskJob, sampler: Sampler) -> contextlib.AbstractContextManager[Sampler]:
    """Return the sampler of a task: the model alone, or the model in conversations."""
    if not job.task.talks:
        return contextlib.nullcontext(sampler)
    # `prepare` refuses conversations with a server.
    assert isinstance(sampler, EngineSampler)
    return ConversationSampler(job.task, spec_of(job), sampler.policy_path, sampler, job.folder)


def _pool(settings: EvalConfig, job: TaskJob) -> VerifierPool:
    verifier, spec = job.task.verifier, spec_of(job)
    return VerifierPool(
        [spec], workers=settings.workers, deadline_s=verifier.deadline_s, memory_mib=verifier.memory_mib
    )


def _check_problems(job: TaskJob, records: Mapping[Key, Record]) -> None:
    digests = {problem.id: problem.digest for problem in job.problems}
    changed = sorted(
        {record.problem for record in records.values() if digests.get(record.problem, record.digest) != record.digest}
    )
    if changed:
        raise ValueError(
            f"{job.folder} holds completions of other problems under the same names ({len(changed)}, the first "
            f"{changed[0]}): the data have changed; choose another --out"
        )


def _wait_s(job: TaskJob, calls: int) -> float:
    return verdicts_wait_s(calls, job.task.verifier.deadline_s)


def _judge_again(job: TaskJob, store: CompletionStore, pool: VerifierPool) -> None:
    """Judge stored completions again if their verdict failed: the completions are valid."""
    judging = Judging(job.task.name, job.problems, job.sampling.k, pool, store.records)
    failed = [record for record in store.records.values() if record.status.failed]
    pending = judging.again([record for record in failed if record.finish_reason not in NO_COMPLETION])
    for key, sample, future in pending:
        store.add(_record(key, store.records[key].digest, sample, future.result(_wait_s(job, len(pending)))))


def _record(key: Key, digest: str, sample: Sample, verdict: Verdict) -> Record:
    return Record(
        *key[:1], digest, *key[1:], sample.text, sample.tokens, sample.finish_reason,
        verdict.status, verdict.score, verdict.reason, dict(verdict.parts), sample.conversation,
    )  # fmt: skip


def _sample(
    job: TaskJob,
    missing: Sequence[Key],
    sampler: Sampler,
    store: CompletionStore,
    pool: VerifierPool,
    settings: EvalConfig,
    console: Console,
) -> None:
    """Sample and judge the missing completions. Store each completion when its verdict arrives."""
    problems = {problem.id: problem for problem in job.problems}
    judged: Done = queue.SimpleQueue()
    chosen = job.sampling
    sampling = SamplingParams(
        1, chosen.max_tokens, chosen.temperature, chosen.stop, chosen.top_p, chosen.top_k, chosen.min_p
    )
    total = len(job.problems) * chosen.k * len(settings.seeds)
    wanted = set(wanted_keys(problems, settings.seeds, chosen.k)) - set(missing)
    with EvalProgress(job.task.name, total, console) as progress:
        progress.start_with([store.records[key] for key in sorted(wanted)])

        def keep(wait_s: float) -> None:
            key, sample, future = judged.get(timeout=wait_s)
            record = _record(key, problems[key[0]].digest, sample, future.result())
            is_new = key in unmade
            store.add(record)
            if is_new:
                unmade.remove(key)
                progress.add(record)

        under_way, unmade = 0, set(missing)
        judging = Judging(job.task.name, job.problems, chosen.k, pool, store.records)
        for index, sample in sampler.sample(_questions(job, missing), sampling, settings.deadline_s):
            if sample.refusal is not None:
                judging.refuse(missing[index], sample.refusal)
                refused = Verdict(None, Status.ERROR, sample.refusal)
                store.add(_record(missing[index], problems[missing[index][0]].digest, sample, refused))
                unmade.remove(missing[index])
                progress.add(store.records[missing[index]])
                continue
            for key, completion, future in judging.add(missing[index], sample):
                future.add_done_callback(functools.partial(_hand_over, judged, key, completion))
                under_way += 1
            while not judged.empty():
                keep(0.0)
                under_way -= 1
        for _ in range(under_way):
            try:
                keep(_wait_s(job, under_way))
            except queue.Empty:
                raise TimeoutError(
                    f"{under_way} verdicts of {job.task.name} did not come within {_wait_s(job, under_way):.0f} s"
                ) from None


def _hand_over(judged: Done, key: Key, sample: Sample, future: Future[Verdict]) -> None:
    judged.put((key, sample, future))


def _questions(job: TaskJob, keys: Sequence[Key]) -> list[Question]:
    problems = {problem.id: problem for problem in job.problems}
    prompts = {prompt.id: prompt for prompt in job.prompts or ()}
    system = job.task.data.system
    return [
        Question(problems[key[0]].question, system, prompts.get(key[0]), sample_seed(key), job.chat) for key in keys
    ]


def sample_seed(key: Key) -> int:
    """Seed of a sample. It depends on the key only: neither on the other samples nor on a resume."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def _rows(
    job: TaskJob, records: Mapping[Key, Record], settings: EvalConfig, pool: VerifierPool
) -> tuple[list[Judged], int]:
    """Return the completions of this evaluation in order, with their votes, and the number of undecided pairs."""
    answers = answers_of(job.task)

    def judge(calls: Sequence[Call]) -> list[Future[Verdict]]:
        return pool.submit_many([(job.task.name, *call) for call in calls])

    rows: list[Judged] = []
    undecided = 0
    for problem in job.problems:
        for seed in settings.seeds:
            group = [records[key] for key in wanted_keys([problem.id], [seed], job.sampling.k)]
            texts: list[str | None] = [None] * len(group)
            classes: list[int | None] = [None] * len(group)
            if answers is not None:
                texts, classes, failed = vote(group, answers, judge, _wait_s(job, len(group) ** 2))
                undecided += failed
            reference = json.dumps(problem.reference, default=str)
            rows += [
                Judged(record, problem.question, reference, answer, number)
                for record, answer, number in zip(group, texts, classes, strict=True)
            ]
    return rows, undecided
