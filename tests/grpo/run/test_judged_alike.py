"""One answer has one verdict: as a gold answer, in training, held out, in the background and in `grpo eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from gold_judge_here import QuestionedHere
from tiny_policy import make_tiny_policy

from grpo.config import TrainConfig
from grpo.config.evaluation import TaskConfig
from grpo.data.prompts import gold_rows, load_prompts
from grpo.evaluation.groups import Judging
from grpo.evaluation.problems import Problem, load_problems, load_task
from grpo.evaluation.questions import Sample
from grpo.policy.stored import load_tokenizer
from grpo.rollout.groups import judge_group
from grpo.run.background_evaluation import BackgroundEvaluation
from grpo.types import Completion, VersionSpan
from rewards.build import VerifierSpec
from rewards.verdict import Status, Verdict
from rewards.verifiers.math import Math

# The system message states it and the question does not: it is right, and no copy of the problem.
ANSWER = "The answer is $3(4+1)$."
QUESTION, TEMPLATE = "What is 15?", "{prompt} Think."
SYSTEM = "Write answers as $3(4+1)$."


class Here:
    """A pool that judges at once, and notes which question the verifier saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Status]] = []
        self._verifier = Math()

    def judges_groups(self, name: str) -> bool:
        return False

    def submit_many(self, calls: Sequence[tuple[str, str, Any, Mapping[str, Any]]], /) -> list[Future[Verdict]]:
        futures: list[Future[Verdict]] = [Future() for _ in calls]
        for future, (_, text, reference, row) in zip(futures, calls, strict=True):
            future.set_result(self._verifier(text, reference, row))
            self.seen.append((row["problem"], future.result().status))
        return futures

    def submit_group(self, *_: Any, **__: Any) -> list[Future[Verdict]]:
        raise AssertionError("math judges completions one at a time")


def evaluate(pool: Any, problem: Problem) -> None:
    Judging("task", [problem], 1, pool, {}).add((problem.id, 0, 0), Sample(ANSWER, 4, "stop"))


def test_an_answer_is_judged_alike_wherever_it_is_judged(tmp_path: Path) -> None:
    rows, policy = tmp_path / "rows.jsonl", make_tiny_policy(tmp_path / "policy")
    rows.write_text(json.dumps({"prompt": QUESTION, "answer": "15"}))
    data = {"path": str(rows), "template": TEMPLATE, "system": SYSTEM}
    tokenizer = load_tokenizer(str(policy))
    tokenizer.chat_template = "{% for one in messages %}{{ one['content'] }}\n{% endfor %}"
    settings = TrainConfig.model_validate(
        {
            "run": {"folder": str(tmp_path / "run")},
            "policy": {"path": str(policy)},
            "data": data,
            "verifiers": [{"name": "math", "use": "math"}],
            "evaluation": {"data": data, "mode": "background"},
            "train": {"steps": 1},
        }
    )
    prompts = load_prompts(settings.data, tokenizer, max_tokens=500)
    (prompt,) = prompts.prompts
    assert SYSTEM in prompt.text
    pool = Here()

    (gold,) = gold_rows(prompts)
    judged = QuestionedHere(Math())(ANSWER, gold.reference, gold.prompt)
    pool.seen.append((gold.prompt["problem"], judged.status))

    completion = Completion((1,), (0.0,), ANSWER, "stop", (VersionSpan(0, 1, 0),))
    judge_group(pool, [VerifierSpec("math", "math", {})], prompt, [completion])

    BackgroundEvaluation(settings, prompts, "cpu")
    evaluate(pool, *load_problems(load_task(str(tmp_path / "run" / "evaluations" / "held_out.yaml"))))

    task = {"name": "task", "source": "a test", "data": data, "verifier": {"use": "math"}}
    evaluate(pool, *load_problems(TaskConfig.model_validate(task)))

    assert pool.seen == [(f"{QUESTION} Think.", Status.CORRECT)] * 4
