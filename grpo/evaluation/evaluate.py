"""`grpo eval`: one model on some tasks, from problems to numbers, with everything that the numbers come from on disk.

The generators, verifiers and sandbox are those of training. Every completion is stored with its verdict the moment it
has one; the numbers are made of what is stored and of nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from grpo.config.evaluation import EvalConfig, TaskConfig, TaskSamplingConfig
from grpo.config.verifiers import VerificationConfig
from grpo.evaluation.card import CARD, close_card, identity_of, open_card
from grpo.evaluation.endpoint import EndpointSampler
from grpo.evaluation.engine_sampler import EngineSampler, dtype_of, prompts_of, sequence_tokens
from grpo.evaluation.export import export
from grpo.evaluation.groups import Judging
from grpo.evaluation.metrics import TaskMetrics, task_metrics
from grpo.evaluation.model import open_model
from grpo.evaluation.problems import Problem, load_problems
from grpo.evaluation.progress import EvalProgress, results_table
from grpo.evaluation.questions import Question, Sample, Sampler
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
from grpo.policy.stored import load_tokenizer
from grpo.report.logs import driver_log
from grpo.rollout.usable_rows import OF_EVALUATION, usable_rows
from grpo.terminal import literal
from grpo.types import Prompt, SamplingParams
from grpo.visible import one_line
from rewards.build import VerifierSpec
from rewards.checks.gold_forms import GoldRow
from rewards.judging import verdicts_wait_s
from rewards.pool import VerifierPool
from rewards.verdict import Verdict

Done = queue.SimpleQueue[tuple[Key, Sample, Future[Verdict]]]
METRICS, RESULTS = "metrics.json", "results.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskJob:
    """A task as this evaluation does it.

    Attributes:
        task: what its file declares.
        sampling: with what the command line says instead.
        problems: its problems.
        prompts: as the policy's tokens; None where a server makes them.
        identity: what its completions hang on.
        folder: where it all goes.
        left_out: problems whose reference cannot be used -> why; they are not among the others.
    """

    task: TaskConfig
    sampling: TaskSamplingConfig
    problems: tuple[Problem, ...]
    prompts: tuple[Prompt, ...] | None
    identity: dict[str, object]
    folder: Path
    left_out: Mapping[str, str] = field(default_factory=dict)


def evaluate(settings: EvalConfig, tasks: Sequence[TaskConfig], console: Console) -> dict[str, TaskMetrics]:
    """Evaluate a model on tasks, or go on with an evaluation that was stopped; results are printed and written.

    Raises:
        ValueError: no such model or data, settings that do not fit them, or a folder with another evaluation.
        TimeoutError: no completion, or no verdict, came within its deadline.
        RuntimeError: an endpoint refuses, or verifiers fail too often to believe the numbers.
    """
    jobs, open_sampler = _prepare(settings, tasks)
    jobs = [_leave_out(job, settings, console) for job in jobs]
    found: dict[str, TaskMetrics] = {}
    tables: dict[str, list[Judged]] = {}
    cards = {}
    with contextlib.ExitStack() as opened:
        opened.enter_context(driver_log(Path(settings.folder), settings.log_level))
        sampler: Sampler | None = None
        for job in jobs:
            with CompletionStore(job.folder / LINES) as store, _pool(settings, job) as pool:
                card = open_card(job.folder, job.identity, settings, job.task, job.sampling.k)
                _check_problems(job, store.records)
                missing = missing_keys([one.id for one in job.problems], settings.seeds, job.sampling.k, store.records)
                _judge_again(job, store, pool)
                logger.info("task %s: %d completions to sample", job.task.name, len(missing))
                if missing:
                    if sampler is None:
                        console.print(literal(f"starting to sample from {settings.model}"), soft_wrap=True)
                        sampler = opened.enter_context(open_sampler())
                    _sample(job, missing, sampler, store, pool, settings, console)
                rows, undecided = _rows(job, store.records, settings, pool)
            _check_failures(job, rows, settings.max_failure_share)
            metrics = task_metrics(job.task.name, rows, votes=answers_of(job.task) is not None)
            write_table(job.folder / TABLE, rows)
            left_out = {"left_out": len(job.left_out)} if job.left_out else {}
            write_json(job.folder / METRICS, {**metrics.as_json(), "undecided_pairs": undecided, **left_out})
            first = job.prompts[0].text if job.prompts else job.problems[0].question
            files = {name: file_digest(job.folder / name) for name in (LINES, TABLE)}
            close_card(job.folder, card, job.problems, first, files, job.left_out)
            logger.info("task %s has ended: %s", job.task.name, {**metrics.as_json(), **left_out})
            found[job.task.name], tables[job.task.name], cards[job.task.name] = metrics, rows, card
    folder = Path(settings.folder)
    write_json(folder / RESULTS, {"model": settings.model, "tasks": {n: one.as_json() for n, one in found.items()}})
    exported = export(folder, settings.model, cards, found, tables)
    console.print(results_table(settings.model, found))
    console.print(literal(f"{folder}: completions, {METRICS} and {CARD} of each task; {exported}"), soft_wrap=True)
    return found


def _prepare(
    settings: EvalConfig, tasks: Sequence[TaskConfig]
) -> tuple[list[TaskJob], Callable[[], AbstractContextManager[Sampler]]]:
    """Read model and data; nothing is claimed yet. The jobs, and how to open who samples for them."""
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"name one or more tasks, each once, with --task; got {', '.join(names) or 'none'}")
    chosen = [settings.sampling_of(task) for task in tasks]
    problems = [tuple(load_problems(task, settings.limit)) for task in tasks]
    for task, own in zip(tasks, problems, strict=True):
        if len(own) < 2:
            raise ValueError(f"{task.name} has {len(own)} problem(s); an interval needs two or more: raise --limit")
    folder = Path(settings.folder)
    if settings.is_endpoint:
        endpoint = EndpointSampler(settings.url, settings.endpoint)
        identity = f"endpoint:{settings.model} {endpoint.model}"
        return [
            TaskJob(task, one, own, None, identity_of(task, identity, one, None, None), folder / task.name)
            for task, one, own in zip(tasks, chosen, problems, strict=True)
        ], lambda: contextlib.nullcontext(endpoint)
    model = open_model(settings.model)
    tokenizer = load_tokenizer(model.path)
    template = str(tokenizer.chat_template) if tokenizer.chat_template else None
    prompts = [tuple(prompts_of(task, own, tokenizer)) for task, own in zip(tasks, problems, strict=True)]
    longest = {
        task.name: (max(len(prompt.token_ids) for prompt in own), one.max_tokens)
        for task, own, one in zip(tasks, prompts, chosen, strict=True)
    }
    tokens = sequence_tokens(model, longest)
    jobs = [
        TaskJob(
            task,
            one,
            own,
            asked,
            identity_of(
                task,
                model.identity,
                one,
                dtype_of(settings),
                template if task.data.chat_template == "auto" else None,
            ),
            folder / task.name,
        )
        for task, one, own, asked in zip(tasks, chosen, problems, prompts, strict=True)
    ]
    return jobs, lambda: EngineSampler(settings, model, tokens)


def _leave_out(job: TaskJob, settings: EvalConfig, console: Console) -> TaskJob:
    """The job without the problems whose reference cannot be used, which are named.

    Raises:
        ValueError: there are too many of them, or no gold answer is `correct`.
    """
    verification = VerificationConfig(
        workers=settings.workers,
        deadline_s=job.task.verifier.deadline_s,
        memory_mib=job.task.verifier.memory_mib,
        check_golds=settings.check_golds,
        max_unusable_share=settings.max_unusable_share,
    )
    rows = [GoldRow(each.reference, each.row, each.id) for each in job.problems]
    found = usable_rows([_spec(job)], {job.task.name: rows}, verification, OF_EVALUATION)
    for line in found.lines:
        console.print(literal(line, "yellow"), soft_wrap=True)
    names = found.names
    kept = tuple(problem for problem in job.problems if problem.id not in names)
    if len(kept) < min(2, len(job.problems)):
        raise ValueError(f"{job.task.name}: fewer than two problems have a reference that can be used; mend the data")
    return replace(job, problems=kept, left_out={each.row.name: each.problem for each in found.left_out})


def _spec(job: TaskJob) -> VerifierSpec:
    return VerifierSpec(job.task.name, job.task.verifier.use, job.task.verifier.options)


def _pool(settings: EvalConfig, job: TaskJob) -> VerifierPool:
    verifier, spec = job.task.verifier, _spec(job)
    return VerifierPool([spec], workers=settings.workers, deadline_s=verifier.deadline_s, memory_mb=verifier.memory_mib)


def _check_problems(job: TaskJob, records: Mapping[Key, Record]) -> None:
    digests = {problem.id: problem.digest for problem in job.problems}
    changed = sorted({one.problem for one in records.values() if digests.get(one.problem, one.digest) != one.digest})
    if changed:
        raise ValueError(
            f"{job.folder} holds completions of other problems under the same names ({len(changed)}, the first "
            f"{changed[0]}): the data have changed; choose another --out"
        )


def _wait_s(job: TaskJob, calls: int) -> float:
    return verdicts_wait_s(calls, job.task.verifier.deadline_s)


def _judge_again(job: TaskJob, store: CompletionStore, pool: VerifierPool) -> None:
    """Ask anew for verdicts that failed: the completion is as good as ever, and the machine may be quieter now."""
    judging = Judging(job.task.name, job.problems, job.sampling.k, pool, store.records)
    asked = judging.again([one for one in store.records.values() if one.status.failed])
    for key, sample, future in asked:
        store.add(_record(key, store.records[key].digest, sample, future.result(_wait_s(job, len(asked)))))


def _record(key: Key, digest: str, sample: Sample, verdict: Verdict) -> Record:
    return Record(
        *key[:1], digest, *key[1:], sample.text, sample.tokens, sample.finish_reason,
        verdict.status, verdict.score, verdict.reason,
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
    """Sample and judge what is missing; each completion is stored as its verdict comes."""
    problems = {problem.id: problem for problem in job.problems}
    judged: Done = queue.SimpleQueue()
    chosen = job.sampling
    sampling = SamplingParams(1, chosen.max_tokens, chosen.temperature, chosen.stop, chosen.top_p)
    total = len(job.problems) * chosen.k * len(settings.seeds)
    with EvalProgress(job.task.name, total, console) as progress:
        progress.add(total - len(missing), stored=True)

        def keep(wait_s: float) -> None:
            key, sample, future = judged.get(timeout=wait_s)
            record = _record(key, problems[key[0]].digest, sample, future.result())
            is_new = key not in store.records
            store.add(record)
            if is_new:
                progress.add(1, record)

        under_way = 0
        judging = Judging(job.task.name, job.problems, chosen.k, pool, store.records)
        for index, sample in sampler.sample(_questions(job, missing), sampling, settings.deadline_s):
            for key, one, future in judging.add(missing[index], sample):
                future.add_done_callback(functools.partial(_hand_over, judged, key, one))
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
    return [Question(problems[key[0]].question, system, prompts.get(key[0]), sample_seed(key)) for key in keys]


def sample_seed(key: Key) -> int:
    """Seed of a sample: the same whether it is asked for alone or with others, first or after a resume."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def _rows(
    job: TaskJob, records: Mapping[Key, Record], settings: EvalConfig, pool: VerifierPool
) -> tuple[list[Judged], int]:
    """The completions that this evaluation wants, in order, with their votes; how many pairs were undecided."""
    answers = answers_of(job.task)

    def judge(calls: Sequence[Call]) -> list[Future[Verdict]]:
        return pool.submit_many([(job.task.name, *call) for call in calls])

    rows: list[Judged] = []
    undecided = 0
    for problem in job.problems:
        for seed in settings.seeds:
            own = [records[key] for key in wanted_keys([problem.id], [seed], job.sampling.k)]
            found: list[str | None] = [None] * len(own)
            classes: list[int | None] = [None] * len(own)
            if answers is not None:
                found, classes, failed = vote(own, answers, judge, _wait_s(job, len(own) ** 2))
                undecided += failed
            reference = json.dumps(problem.reference, default=str)
            rows += [
                Judged(record, problem.question, reference, answer, number)
                for record, answer, number in zip(own, found, classes, strict=True)
            ]
    return rows, undecided


def _check_failures(job: TaskJob, rows: Sequence[Judged], most: float) -> None:
    failed = [row.record for row in rows if row.record.status.failed]
    if len(failed) > most * len(rows):
        raise RuntimeError(
            f"{len(failed)} of {len(rows)} verdicts of {job.task.name} failed, above max_failure_share={most:g}; the "
            f"first: {failed[0].status.value}: {one_line(failed[0].reason)}. The completions are stored: mend the "
            "verifier or raise task.verifier.deadline_s, and the same command asks it again"
        )
