"""Read the tasks, the data and the model of an evaluation, before devices are claimed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from grpo.config.evaluation import EvalConfig, TaskConfig, TaskSamplingConfig
from grpo.config.verifiers import VerificationConfig
from grpo.evaluation.card import identity_of
from grpo.evaluation.endpoint import EndpointSampler
from grpo.evaluation.engine_sampler import EngineSampler, Room, dtype_of, prompts_of, room_of, room_of_conversations
from grpo.evaluation.model import open_model
from grpo.evaluation.problems import Problem, load_problems, with_shots
from grpo.evaluation.questions import Sampler, length_warning
from grpo.policy.stored import load_tokenizer
from grpo.rollout.usable_rows import OF_EVALUATION, usable_rows
from grpo.run.streams import check_prompts
from grpo.terminal import literal
from grpo.types import Prompt
from rewards.build import VerifierSpec
from rewards.checks.gold_forms import GoldRow


@dataclass(frozen=True, slots=True)
class TaskJob:
    """A task with the problems, the sampling and the folder of this evaluation.

    Attributes:
        task: declaration from the task's file.
        sampling: sampling settings; values of the command line replace those of the task.
        problems: usable problems of the task.
        prompts: prompts as tokens of the policy; None if a server makes the tokens.
        identity: settings that determine the completions and the verdicts.
        folder: folder for the task's files.
        room: room in the policy's context; None if only a server knows it.
        left_out: excluded problem -> why its reference cannot be used. `problems` does not contain these problems.
        chat: whether a server applies its chat template.
        warning: sentence about a server's context; None if every completion has room, or the context is not known.
    """

    task: TaskConfig
    sampling: TaskSamplingConfig
    problems: tuple[Problem, ...]
    prompts: tuple[Prompt, ...] | None
    identity: dict[str, object]
    folder: Path
    room: Room | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    chat: bool = True
    warning: str | None = None


def prepare(
    settings: EvalConfig, tasks: Sequence[TaskConfig]
) -> tuple[list[TaskJob], Callable[[], AbstractContextManager[Sampler]]]:
    """Read model and data without claiming devices. Return the jobs, and a function that opens their sampler."""
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"name one or more tasks, each once, with --task; got {', '.join(names) or 'none'}")
    chosen = [settings.sampling_of(task) for task in tasks]
    chats = [not settings.is_endpoint or settings.chat_of(task) for task in tasks]
    tasks = [with_shots(task) for task in tasks]
    problems = [tuple(load_problems(task, settings.limit)) for task in tasks]
    for task, task_problems in zip(tasks, problems, strict=True):
        if len(task_problems) < 2:
            raise ValueError(
                f"{task.name} has {len(task_problems)} problem(s); an interval needs two or more: raise --limit"
            )
    dtype: str | None = None
    template: str | None = None
    prompts: list[tuple[Prompt, ...] | None] = [None] * len(tasks)
    rooms: list[Room | None] = [None] * len(tasks)
    served: dict[str, object] = {}
    context: int | None = None
    if settings.is_endpoint:
        _refuse_conversations(tasks)
        endpoint = EndpointSampler(settings.url, settings.endpoint)
        # A server may come back at another address or port, so its address is no part of the identity.
        identity, served = f"endpoint:{endpoint.model}", endpoint.served()
        context = endpoint.context

        def open_sampler() -> AbstractContextManager[Sampler]:
            return contextlib.nullcontext(endpoint)

    else:
        model = open_model(settings.model)
        identity, dtype = model.identity, dtype_of(settings)
        tokenizer = load_tokenizer(model.path)
        template = str(tokenizer.chat_template) if tokenizer.chat_template else None
        for at, (task, task_problems, sampling) in enumerate(zip(tasks, problems, chosen, strict=True)):
            rendered = tuple(prompts_of(task, task_problems, tokenizer))
            prompts[at] = rendered
            lengths = [len(prompt.token_ids) for prompt in rendered]
            if task.talks:
                check_prompts(task, rendered)
                rooms[at] = room_of_conversations(model, task, sampling.max_tokens)
            else:
                rooms[at] = room_of(model, task.name, lengths, sampling.max_tokens)
        tokens = max(room.tokens for room in rooms if room)

        def open_sampler() -> AbstractContextManager[Sampler]:
            return EngineSampler(settings, model, tokens)

    jobs = []
    parts = zip(tasks, chosen, problems, prompts, rooms, chats, strict=True)
    for task, sampling, task_problems, task_prompts, room, chat in parts:
        longest = settings.endpoint.extra_body.get("max_tokens", sampling.max_tokens)
        warning = length_warning(task.name, [problem.question for problem in task_problems], longest, context)
        used_template = template if task.data.chat_template == "auto" else None
        settled = identity_of(task, identity, sampling, dtype, used_template)
        more: dict[str, object] = {"served": served, "requests": "" if chat else "/completions"}
        more |= {"extra_body": settings.endpoint.extra_body if settings.is_endpoint else {}}
        settled |= {name: value for name, value in more.items() if value}
        folder = Path(settings.folder) / task.name
        job = TaskJob(task, sampling, task_problems, task_prompts, settled, folder, room, chat=chat, warning=warning)
        jobs.append(job)
    return jobs, open_sampler


def leave_out(job: TaskJob, settings: EvalConfig, console: Console) -> TaskJob:
    """Remove the problems whose reference cannot be used, and print their names.

    Raises:
        ValueError: too many problems cannot be used, or no gold answer is `correct`.
    """
    verification = VerificationConfig(
        workers=settings.workers,
        deadline_s=job.task.verifier.deadline_s,
        memory_mib=job.task.verifier.memory_mib,
        check_golds=settings.check_golds,
        max_unusable_share=settings.max_unusable_share,
    )
    rows = [GoldRow(problem.reference, problem.row, problem.id) for problem in job.problems]
    usable = usable_rows([spec_of(job)], {job.task.name: rows}, verification, OF_EVALUATION)
    for line in usable.lines:
        console.print(literal(line, "yellow"), soft_wrap=True)
    names = usable.names
    kept = tuple(problem for problem in job.problems if problem.id not in names)
    if len(kept) < min(2, len(job.problems)):
        raise ValueError(f"{job.task.name}: fewer than two problems have a reference that can be used; mend the data")
    return replace(job, problems=kept, left_out={unusable.row.name: unusable.problem for unusable in usable.left_out})


def _refuse_conversations(tasks: Sequence[TaskConfig]) -> None:
    """Refuse tasks that a server cannot play, because it keeps the tokens of its turns to itself."""
    talking = [task.name for task in tasks if task.talks]
    if talking:
        raise ValueError(
            f"{', '.join(talking)}: conversations continue the policy's own tokens, which an endpoint does not give; "
            "name the policy's folder in place of the URL"
        )


def spec_of(job: TaskJob) -> VerifierSpec:
    return VerifierSpec(job.task.name, job.task.verifier.use, job.task.verifier.options)
