"""Evaluation on held-out prompts while a run trains: between two steps, or in a separate process."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from grpo import config
from grpo.cluster import activity
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.data.prompts import PromptSet
from grpo.report.progress import Progress
from grpo.report.recorder import RunRecorder
from grpo.rollout.collector import Collector
from grpo.rollout.failure_share import FailureShare
from grpo.rollout.groups import collect, seed_of
from grpo.run.background_evaluation import MOST_OWED, BackgroundEvaluation
from grpo.run.best import BestPolicies
from grpo.run.metrics import evaluation_metrics
from grpo.run.stopwatch import Stopwatch
from grpo.run.streams import HELD_OUT, Streams
from grpo.run.turns import Turns
from grpo.run.verification import Verification
from grpo.types import Completion, Group, Phase, Prompt, Request, SamplingParams
from rewards.pool.busy_clock import BusyClock


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Evaluates the policy; does nothing if the run has no held-out prompts.

    Attributes:
        settings: the run's config.
        prompts: the held-out prompts.
        background: evaluation in a separate process; None if the evaluation happens between two steps.
        learner: learner, which exports the policy for the background evaluation.
        generators: generators, which answer the prompts between two steps.
        streams: makes the stream of the answers.
        turns: decides whether the learner or the generators use the GPUs' memory now.
        verification: verifiers, which judge the answers.
        rollouts: collector of the training groups, which are also verified during an evaluation.
        report: recorder of the answers and of late metrics.
        progress: the display.
        busy: the driver's activities and times.
        best: keeper of the best policy.
    """

    settings: config.TrainConfig
    prompts: PromptSet | None
    background: BackgroundEvaluation | None
    learner: LearnerGroup
    generators: GeneratorGroup
    streams: Streams
    turns: Turns
    verification: Verification
    rollouts: Collector
    report: RunRecorder
    progress: Progress
    busy: BusyClock
    best: BestPolicies

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after this step: after every `evaluation.every` steps, and after the last step."""
        evaluation = self.settings.evaluation
        return evaluation is not None and (step % evaluation.every == 0 or step == self.settings.train.steps)

    def evaluate(self, step: int) -> dict[str, float]:
        """Return the metrics of a greedy evaluation after `step`.

        Return an empty dict if there are no prompts, or if the background evaluation reports the metrics later.
        """
        evaluation = self.settings.evaluation
        if evaluation is None or self.prompts is None:
            return {}
        if self.background:
            # Policies that wait for their evaluation fill the disk. So training waits if too many are waiting.
            if self.background.owed >= MOST_OWED:
                self.report_late(wait=True)
            self.turns.learn()
            self.background.add(step, self.learner.export)
            return {}
        rollout = self.settings.rollout
        longest = evaluation.max_completion_tokens or rollout.max_completion_tokens
        sampling = SamplingParams(1, longest, 0.0, tuple(rollout.stop))
        watch = Stopwatch()
        with activity.current().within(Phase.EVALUATE), self.busy.during(Phase.EVALUATE):
            groups = self._answers(self.prompts.prompts, sampling, step)
        FailureShare(self.settings.verification.max_failure_share).check(groups)
        # The metrics of these verdicts must not count for a training step, so they are dropped.
        self.verification.take_metrics()
        self.report.evaluation(step, groups)
        return evaluation_metrics(groups) | {"time/eval_s": watch.elapsed_s}

    def keep_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the policy of the last step if it is the best so far, by the metric of `train.keep_best`."""

        def export(folder: str) -> None:
            self.turns.learn()
            phase = self.progress.phase(Phase.CHECKPOINT, f"keeping the best policy so far, of step {step}")
            with phase, self.busy.during(Phase.CHECKPOINT):
                self.learner.export(folder)

        self.best.offer(step, metrics, export)

    def report_late(self, *, wait: bool = False) -> None:
        """Report finished background evaluations. If `wait` is set, wait for all pending evaluations."""
        if self.background is None:
            return
        owed = self.background.owed if wait else 0
        with self.progress.phase(Phase.WAIT, f"waiting for {owed} evaluation(s)") if owed else contextlib.nullcontext():
            for late in self.background.finished(wait=wait):
                self.report.late(late.step, late.metrics)
                self.best.offer(late.step, late.metrics, functools.partial(shutil.copytree, late.policy))

    def _answers(self, prompts: Sequence[Prompt], sampling: SamplingParams, step: int) -> list[Group]:
        self.turns.generate()
        seeds = [seed_of(self.settings.run.seed, step, prompt) for prompt in prompts]

        def generate(prompts: Sequence[Prompt]) -> Iterator[tuple[int, Sequence[Completion]]]:
            stream = self.streams.stream(self.generators, sampling, HELD_OUT)
            pairs = enumerate(zip(prompts, seeds, strict=True))
            stream.submit([Request(index, prompt.token_ids, seed) for index, (prompt, seed) in pairs], prompts)
            while stream.unfinished:
                yield from stream.finished()
                self.rollouts.drain()

        verification = self.verification
        wait_s = verification.wait_s(len(prompts) * sampling.samples)
        groups = dict(collect(prompts, generate, verification.start, verification.specs, verdict_wait_s=wait_s))
        return [groups[index] for index in range(len(prompts))]
