"""The open resources of a training run: folder, cluster, verifiers, data and report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from grpo import config
from grpo.algorithm.minibatches import TrainBatch
from grpo.algorithm.signals.process import TokenEnds
from grpo.cluster.claim import plan_of
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.cluster.slow_generators import SlowGenerators
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions, load_tokenizer, local_or_hub
from grpo.policy.teacher import check_teacher
from grpo.report.progress import Progress
from grpo.report.recorder import RunRecorder
from grpo.report.timeline import DRIVER
from grpo.report.trackers import open_trackers, require_trackers
from grpo.rollout.collector import Collector
from grpo.rollout.failure_share import FailureShare
from grpo.rollout.groups import with_refills
from grpo.rollout.staleness import OpenGroups
from grpo.run import checkpoint
from grpo.run.actors import start_actors
from grpo.run.background_evaluation import BackgroundEvaluation
from grpo.run.best import BestPolicies
from grpo.run.checkpoint import Checkpoint
from grpo.run.folder import note_fault, open_folder
from grpo.run.held_out import HeldOut
from grpo.run.metrics import lag_metrics
from grpo.run.prompts import RunPrompts
from grpo.run.pushing import Pushing
from grpo.run.stopwatch import Stopwatch
from grpo.run.streams import Streams, check_prompts
from grpo.run.turns import Turns
from grpo.run.verification import Verification
from grpo.start_up import spare_the_collector
from grpo.types import Group, Phase, SamplingParams
from rewards.pool.busy_clock import BusyClock


class TrainingRun:
    """An open GRPO run. `grpo.train_loop` calls its methods in each step."""

    report: RunRecorder
    learner: LearnerGroup
    generators: GeneratorGroup
    turns: Turns
    rollouts: Collector
    pushing: Pushing
    held_out: HeldOut

    def __init__(self, settings: config.TrainConfig, progress: Progress) -> None:
        """Read the data. No devices are reserved yet.

        Raises:
            ValueError: the data, the policy or the run's folder does not fit the config, or the package of LoRA or of a
                tracker is missing.
        """
        require_peft(settings.learner)
        require_trackers(settings.report.trackers)
        self.settings = settings
        self._progress = progress
        check_positions(settings)
        self._policy_path = local_or_hub(settings.policy)
        self._verification = Verification(settings)
        tokenizer = load_tokenizer(self._policy_path)
        check_teacher(settings, tokenizer)
        self.token_ends = TokenEnds(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)))
        self.specs = self._verification.specs
        self.prompts = RunPrompts(settings, tokenizer, self.specs, progress)
        self._failures = FailureShare(settings.verification.max_failure_share)
        self.folder = Path(settings.run.folder)
        self._streams = Streams(settings, self._policy_path, settings.rollout.max_prompt_tokens, self.folder)
        if self._streams.talks:
            check_prompts(settings, self.prompts.all())
        self.step = 0
        self._checkpoint_s: float | None = None
        self._curriculum: dict[str, float] = {}
        self._busy = BusyClock()
        self._step_began: float | None = None
        self._slow = SlowGenerators()
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self._open(opened)
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._closing.__exit__(*exception)

    def _open(self, opened: contextlib.ExitStack) -> None:
        settings, progress = self.settings, self._progress
        resumed = open_folder(settings.run, settings, progress)
        self._open_report(opened)
        opened.enter_context(self._streams)
        if self._streams.talks:
            with progress.phase(Phase.START, "loading tools and environments"):
                self._streams.start()
        per_node = settings.verification.per_node
        if not per_node:
            self._verification.open(opened, progress)
        with progress.phase(Phase.START, "starting Ray"):
            cluster = opened.enter_context(Cluster(settings.cluster, plan_of(settings)))
        if per_node:
            self._verification.open(opened, progress)
        self._verification.open_models(
            opened, progress, self._policy_path, settings.policy.dtype, settings.max_sequence_tokens
        )
        transport = settings.weight_sync.choose(cluster.device, cluster.nodes, share_gpus=settings.cluster.share_gpus)
        engines = f"{settings.learner.ranks} learner rank(s), {settings.generator.replicas} generator(s)"
        resuming = f", resuming from step {resumed.step}" if resumed else ""
        with progress.phase(Phase.START, f"starting {engines}{resuming}"):
            policy_path = str(resumed.policy.absolute()) if resumed else self._policy_path
            self.learner, self.generators, self.turns = start_actors(
                settings, cluster, policy_path, self._policy_path, transport, resumed, progress.show
            )
            background = self._open_background(cluster)
        # The run repeats the steps after its last checkpoint, and before step 1 also the first evaluation.
        last = resumed.step if resumed and resumed.step > 0 else -1
        self.report.truncate_after(last)
        if background:
            opened.callback(background.close)
            background.forget_after(last)
        self._resume(resumed)
        self.pushing = Pushing(
            settings,
            self.learner,
            self.generators,
            self.turns,
            self.rollouts,
            self.prompts.training.prompts,
            transport,
            self.step,
            progress.show,
        )
        self.held_out = HeldOut(
            settings,
            self.prompts.held_out,
            background,
            self.learner,
            self.generators,
            self._streams,
            self.turns,
            self._verification,
            self.rollouts,
            self.report,
            progress,
            self._busy,
            BestPolicies(self.folder, settings.train, last),
        )
        spare_the_collector()

    def _open_report(self, opened: contextlib.ExitStack) -> None:
        settings, progress = self.settings, self._progress
        for line in self.prompts.lines():
            progress.show(line)
        self.prompts.write_left_out(self.folder)
        trackers = open_trackers(
            settings.report.trackers,
            self.folder,
            config=settings.model_dump(mode="json"),
            project=settings.report.project,
        )
        self.report = opened.enter_context(
            RunRecorder(
                self.folder,
                trackers=trackers,
                progress=progress,
                rollouts_every=settings.report.rollouts_every,
                total_steps=settings.train.steps,
                # With tokens of older policies, the mismatch also measures the policy's change. So the alarm is off.
                mismatch_alarm=None if settings.rollout.max_policy_lag else settings.report.mismatch_alarm,
                rollouts_max_mib=settings.report.rollouts_max_mib,
            )
        )

    def _open_background(self, cluster: Cluster) -> BackgroundEvaluation | None:
        evaluation = self.settings.evaluation
        if evaluation is None or evaluation.mode != "background" or not self.prompts.held_out:
            return None
        return BackgroundEvaluation(self.settings, self.prompts.held_out, cluster.device)

    def _resume(self, resumed: Checkpoint | None) -> None:
        """Load the driver's part of a checkpoint, if there is one, and prepare for the next groups."""
        state = {}
        if resumed:
            state = resumed.driver_state()
            self.prompts.cursor.load_state_dict(state["cursor"])
            self.step = resumed.step
        self.rollouts = self._collector()
        if "rollouts" in state:
            self.rollouts.load_state_dict(state["rollouts"], self.prompts.training.prompts)
        if self.settings.rollout.max_policy_lag:
            self.learner.meanwhile(self.rollouts.drain)

    def _collector(self) -> Collector:
        rollout = self.settings.rollout
        sampling = SamplingParams(
            rollout.group_size, rollout.max_completion_tokens, rollout.temperature, tuple(rollout.stop)
        )
        most = rollout.prompts_per_step * (1 + rollout.max_policy_lag)
        stream = self._streams.stream(self.generators, sampling)
        return Collector(
            stream,
            self._verification.verifying(),
            OpenGroups(rollout.prompts_per_step, rollout.max_policy_lag, self.settings.train.steps, self.step),
            self.prompts.cursor.next,
            run_seed=self.settings.run.seed,
            verdict_wait_s=self._verification.wait_s(most * sampling.samples),
            resumed=self._streams.resumed(stream),
        )

    def collect(self, watch: Stopwatch) -> list[Group]:
        """Return a step's judged groups in the order of prompts, followed by the groups of `refill_rounds`."""
        self.turns.generate()
        self.rollouts.fill()
        groups = with_refills(
            self.settings.rollout.prompts_per_step,
            lambda count, number: self.rollouts.take(count, watch, number),
            self.settings.algorithm.refill_rounds,
        )
        self._failures.check(groups)
        self._curriculum = self.prompts.observe(groups)
        return groups

    def learn(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        """Do an optimizer step for each batch, in order; the result is the next policy version.

        Returns:
            The learner's metrics of each step, with the metrics of the step's packing.
        """
        self.pushing.version = self.step + 1
        shares: list[dict[str, float]] = []

        def noted() -> Iterator[TrainBatch]:
            for batch in batches:
                shares.append(batch.shares())
                yield batch

        return [update | share for update, share in zip(self.learner.steps(noted()), shares, strict=True)]

    def refresh_reference(self) -> None:
        """Copy the current policy into the reference every `reference_refresh` steps, if configured."""
        every = self.settings.algorithm.reference_refresh
        if every and self.step % every == 0:
            self.learner.refresh_reference()

    def verifier_metrics(self) -> dict[str, float]:
        """Return the number of removed rows, the curriculum's metrics, and latencies and cache hits of verdicts."""
        left_out = {"data/rows_left_out": float(self.prompts.left_out)}
        return left_out | self._curriculum | self._verification.take_metrics()

    def lag_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Return the age of the last step's tokens, in policy versions, and the metrics of unfinished groups."""
        return lag_metrics(groups, self.step - 1) | self.rollouts.metrics()

    def generator_metrics(self) -> dict[str, float]:
        """Return how much slower the slowest generator is than its peers; report each slow generator once."""
        metrics, lines = self._slow.step(self.generators.take_sampled())
        for line in lines:
            note_fault(self.folder, line)
            self._progress.show(line)
        return metrics

    def report_busy(self, watch: Stopwatch) -> None:
        """Record the activities and times of driver and actors; `watch` belongs to the newest step."""
        self._busy.merge(watch.busy.take())
        self._step_began = watch.begun_at
        self._report_busy()

    def _report_busy(self) -> None:
        if self._step_began is None:
            return
        lanes = self.learner.take_busy() | self.generators.take_busy() | self._verification.take_busy()
        self.report.busy(self.step, self._step_began, {DRIVER: self._busy.take()} | lanes)

    def save(self) -> Checkpoint | None:
        """Write a checkpoint of this step and return it; None if this checkpoint exists already."""
        newest = checkpoint.latest(self.folder)
        if newest is not None and newest.step == self.step:
            return None
        watch = Stopwatch()
        self.turns.learn()
        phase = self._progress.phase(Phase.CHECKPOINT, f"writing the checkpoint of step {self.step}")
        with phase, self._busy.during(Phase.CHECKPOINT):
            written = checkpoint.write(
                self.folder,
                self.step,
                self.learner.save,
                {"step": self.step, "cursor": self.prompts.cursor.state_dict(), "rollouts": self.rollouts.state_dict()},
                self.settings.train.keep_checkpoints,
            )
        self.held_out.best.checkpointed(self.step)
        self._checkpoint_s = watch.elapsed_s
        # The step's line is already in the report, and the checkpoint's time belongs to this step.
        self._report_busy()
        return written

    def take_checkpoint_metrics(self) -> dict[str, float]:
        """Return the seconds that a checkpoint took, if a checkpoint was written since the last call."""
        seconds, self._checkpoint_s = self._checkpoint_s, None
        return {} if seconds is None else {"time/checkpoint_s": seconds}
