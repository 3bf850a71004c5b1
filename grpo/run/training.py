"""All that a training run holds open: its folder, cluster, verifiers, data and report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from grpo import config
from grpo.algorithm.minibatches import TrainBatch
from grpo.cluster.activity import ACTIVITY
from grpo.cluster.claim import plan_of
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.cluster.slow_generators import SlowGenerators
from grpo.cluster.start_up import spare_the_collector
from grpo.cluster.verifier_nodes import NodePool
from grpo.config.verifiers import specs_of
from grpo.data.cursor import Cursor
from grpo.data.prompts import PromptSet, check_prompt_count, gold_rows, load_prompts
from grpo.generator.setup import generator_setups
from grpo.learner.setup import learner_setups
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions, load_tokenizer, local_or_hub
from grpo.report.progress import Progress
from grpo.report.recorder import RunRecorder
from grpo.report.timeline import DRIVER
from grpo.report.trackers import open_trackers
from grpo.rollout.collector import Collector
from grpo.rollout.failure_share import FailureShare
from grpo.rollout.groups import Verifying, collect, seed_of, with_refills
from grpo.rollout.staleness import OpenGroups
from grpo.rollout.usable_rows import usable_rows
from grpo.run import checkpoint
from grpo.run.background_evaluation import MOST_OWED, BackgroundEvaluation
from grpo.run.folder import note_fault, open_folder, skipped_folder
from grpo.run.metrics import lag_metrics, push_metrics, verifier_metrics
from grpo.run.stopwatch import Stopwatch
from grpo.run.turns import Turns
from grpo.types import Completion, Group, Prompt, SamplingParams
from grpo.weights.sync import TOLERANCES, WeightSync
from rewards.judging import columns_of, judge
from rewards.pool import VerifierPool
from rewards.pool.busy_clock import BusyClock
from rewards.selection import check_rows, choose
from rewards.verdict import Verdict


class TrainingRun:
    """A GRPO run, opened: `grpo.train_loop` drives it step by step."""

    learner: LearnerGroup
    generators: GeneratorGroup
    _pool: VerifierPool | NodePool

    def __init__(self, settings: config.TrainConfig, progress: Progress) -> None:
        """Read the data; nothing is claimed yet.

        Raises:
            ValueError: the data, the policy or the run's folder is not as the config says, or peft is missing.
        """
        require_peft(settings.learner)
        self.settings = settings
        self._progress = progress
        check_positions(settings)
        self._policy_path = local_or_hub(settings.policy)
        tokenizer = load_tokenizer(self._policy_path)
        limit = settings.rollout.max_prompt_tokens
        self.training = load_prompts(settings.data, tokenizer, max_tokens=limit)
        check_prompt_count(self.training, settings.rollout)
        self.held_out: PromptSet | None = None
        if settings.evaluation:
            self.held_out = load_prompts(settings.evaluation.data, tokenizer, max_tokens=limit, where="evaluation.data")
        self.specs = specs_of(settings.verifiers, settings.verification)
        self._failures = FailureShare(settings.verification.max_failure_share)
        for prompts in (self.training, self.held_out):
            check_rows(self.specs, ((prompt.id, prompt.row) for prompt in prompts.prompts) if prompts else ())
        self._leave_out()
        self.folder = Path(settings.run.folder)
        self.step = 0
        # The version that the learner will be when it has done all that was asked of it.
        self._begun = 0
        self._checkpoint_s: float | None = None
        self._busy = BusyClock()
        self._step_began: float | None = None
        self._slow = SlowGenerators()
        self._closing = contextlib.ExitStack()

    def _leave_out(self) -> None:
        """Keep rows whose reference cannot be used out of training and evaluation.

        Raises:
            ValueError: there are too many of them, or no gold answer is `correct`.
        """
        parts = {"training": self.training, "held-out": self.held_out}
        with self._progress.phase("looking at the gold answers"):
            self.usable = usable_rows(
                self.specs,
                {name: gold_rows(prompts) for name, prompts in parts.items() if prompts},
                self.settings.verification,
            )
        names = self.usable.names
        without = frozenset(at for at, prompt in enumerate(self.training.prompts) if prompt.id in names)
        check_prompt_count(self.training, self.settings.rollout, len(without))
        self.cursor: Cursor[Prompt] = Cursor(self.training.prompts, self.settings.run.seed, without)
        if self.held_out:
            kept = tuple(prompt for prompt in self.held_out.prompts if prompt.id not in names)
            if not kept:
                raise ValueError("no row of evaluation.data has a reference that can be used; mend the data")
            self.held_out = replace(self.held_out, prompts=kept)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self._open(opened)
            self._closing = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def _open(self, opened: contextlib.ExitStack) -> None:
        settings, progress = self.settings, self._progress
        found = open_folder(settings.run, settings, progress)
        for name, prompts in (("training", self.training), ("held-out", self.held_out)):
            if prompts and prompts.dropped:
                total = prompts.dropped + len(prompts.prompts)
                progress.show(
                    f"{prompts.dropped} of {total} {name} prompts are longer than rollout.max_prompt_tokens="
                    f"{settings.rollout.max_prompt_tokens} and are left out"
                )
        for line in self.usable.lines:
            progress.show(line)
        self.usable.write(self.folder)
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
                # On tokens of older versions it would be the policy's progress that is measured.
                mismatch_alarm=None if settings.rollout.max_policy_lag else settings.report.mismatch_alarm,
                rollouts_max_mib=settings.report.rollouts_max_mib,
            )
        )
        pool = settings.verification.model_dump(include={"workers", "deadline_s", "overlap"})
        pool["memory_mb"] = settings.verification.memory_mib
        if not settings.verification.per_node:
            with progress.phase("starting the verifiers"):
                self._pool = opened.enter_context(VerifierPool(self.specs, **pool))
        with progress.phase("starting Ray"):
            cluster = opened.enter_context(Cluster(settings.cluster, plan_of(settings)))
        if settings.verification.per_node:
            with progress.phase("starting the verifiers on every node"):
                self._pool = opened.enter_context(NodePool(self.specs, **pool))
        with progress.phase(f"starting {settings.learner.ranks} learner rank(s), {settings.generator.replicas} vLLM"):
            self._start_actors(cluster, str(found.policy.absolute()) if found else self._policy_path)
        # Lines of steps that no checkpoint holds are forgotten: those steps are made again, and so is the evaluation
        # before the first step where the run was stopped before it.
        self.report.truncate_after(found.step if found and found.step > 0 else -1)
        if self._background:
            opened.callback(self._background.close)
            self._background.forget_after(found.step if found and found.step > 0 else -1)
        if found:
            with progress.phase(f"resuming from step {found.step}"):
                self.learner.load(str(found.folder.absolute()))
                state = found.driver_state()
                self.cursor.load_state_dict(state["cursor"])
                self.step = found.step
        self.rollouts = self._collector()
        if found and "rollouts" in state:
            self.rollouts.load_state_dict(state["rollouts"], self.training.prompts)
        if settings.rollout.max_policy_lag:
            self.learner.meanwhile(self.rollouts.drain)
        self.sync = WeightSync(
            self.learner,
            self.generators,
            settings.weight_sync.bucket_mib << 20,
            settings.weight_sync.tolerance or TOLERANCES[settings.policy.dtype],
        )
        self.generators.on_restart(self._push_to)
        spare_the_collector()

    def _start_actors(self, cluster: Cluster, policy_path: str) -> None:
        settings = self.settings
        takes_turns = settings.cluster.sleep and cluster.device == "cuda"
        transport = settings.weight_sync.choose(cluster.device, cluster.nodes, share_gpus=settings.cluster.share_gpus)
        join_learner = cluster.start_learner(
            learner_setups(settings, policy_path, self._policy_path, cluster.device, skipped_folder(settings.run))
        )
        join_generators = cluster.start_generators(
            generator_setups(settings, policy_path, self._policy_path, cluster.device, transport, sleeps=takes_turns),
            settings.rollout.deadline_s,
            settings.weight_sync.deadline_s,
            self._progress.show,
        )
        self.learner, self.generators = join_learner(), join_generators()
        sync = settings.weight_sync
        if transport != "object_store":
            workers = settings.generator.devices
            self.learner.connect(self.generators, transport, workers, sync.deadline_s, sparse=sync.sparse)
        elif sync.sparse:
            self.learner.push_changes(self.generators)
        self.turns = Turns(self.learner, self.generators, enabled=takes_turns)
        self._background: BackgroundEvaluation | None = None
        if settings.evaluation and settings.evaluation.mode == "background" and self.held_out:
            self._background = BackgroundEvaluation(settings, self.held_out, cluster.device)

    def _collector(self) -> Collector:
        rollout = self.settings.rollout
        sampling = SamplingParams(
            rollout.group_size, rollout.max_completion_tokens, rollout.temperature, tuple(rollout.stop)
        )
        most = rollout.prompts_per_step * (1 + rollout.max_policy_lag)
        return Collector(
            self.generators.stream(sampling),
            Verifying(self._verify, self.specs),
            OpenGroups(rollout.prompts_per_step, rollout.max_policy_lag, self.settings.train.steps, self.step),
            self.cursor.next,
            run_seed=self.settings.run.seed,
            verdict_wait_s=self._verdict_wait_s(most * sampling.samples),
        )

    def collect(self, watch: Stopwatch) -> list[Group]:
        """A step's groups, sampled and scored, in the order of their prompts, then those of `refill_rounds`."""
        self.turns.generate()
        self.rollouts.fill()
        groups = with_refills(
            self.settings.rollout.prompts_per_step,
            lambda count, number: self.rollouts.take(count, watch, number),
            self.settings.algorithm.refill_rounds,
        )
        self._failures.check(groups)
        return groups

    def learn(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        """An optimizer step for each batch, in order: what comes out is the next version of the policy.

        Returns:
            The learner's metrics of each, with what its packing wasted and saved.
        """
        self._begun = self.step + 1
        shares: list[dict[str, float]] = []

        def noted() -> Iterator[TrainBatch]:
            for batch in batches:
                shares.append(batch.shares())
                yield batch

        return [update | share for update, share in zip(self.learner.steps(noted()), shares, strict=True)]

    def refresh_reference(self) -> None:
        """Make the reference the present policy after every so many steps, where that is asked for."""
        every = self.settings.algorithm.reference_refresh
        if every and self.step % every == 0:
            self.learner.refresh_reference()

    def verifier_metrics(self) -> dict[str, float]:
        """Latencies and cache hits of the verdicts since the last step but for evaluations; rows that are left out."""
        return {"data/rows_left_out": float(len(self.usable.left_out))} | verifier_metrics(self._pool.take_recent())

    def lag_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """How old the tokens of the step that was just taken are, and what is under way beside it."""
        return lag_metrics(groups, self.step - 1) | self.rollouts.metrics()

    def evaluate(self) -> dict[str, float]:
        """Greedy accuracy on the held-out prompts; nothing where there are none, or where it comes in late."""
        evaluation = self.settings.evaluation
        if evaluation is None or self.held_out is None:
            return {}
        if self._background:
            # Policies that wait fill the disk: where evaluation is the slower, training waits for it.
            if self._background.owed >= MOST_OWED:
                self.report_evaluations(wait=True)
            self.turns.learn()
            self._background.add(self.step, self.learner.export)
            return {}
        rollout = self.settings.rollout
        longest = evaluation.max_completion_tokens or rollout.max_completion_tokens
        watch = Stopwatch()
        with ACTIVITY.within("evaluate"), self._busy.during("evaluate"):
            groups = self._answers(self.held_out.prompts, SamplingParams(1, longest, 0.0, tuple(rollout.stop)))
        FailureShare(self.settings.verification.max_failure_share).check(groups)
        # What an evaluation asked of the pool is not a step's.
        self._pool.take_recent()
        self.report.evaluation(self.step, groups)
        rollouts = [group.rollouts[0] for group in groups]
        judged = [one for one in rollouts if not next(iter(one.verdicts.values())).status.failed]
        return {
            "eval/accuracy": sum(one.correct for one in judged) / max(1, len(judged)),
            "eval/completion_tokens_mean": sum(len(one.completion.token_ids) for one in rollouts) / len(rollouts),
            "eval/failed_verdicts": float(len(rollouts) - len(judged)),
            "time/eval_s": watch.elapsed_s,
        }

    def _answers(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Group]:
        self.turns.generate()
        seeds = [seed_of(self.settings.run.seed, self.step, prompt) for prompt in prompts]

        def generate(asked: Sequence[Prompt]) -> Iterator[tuple[int, Sequence[Completion]]]:
            for finished in self.generators.generate(asked, sampling, seeds):
                yield finished
                self.rollouts.drain()

        wait_s = self._verdict_wait_s(len(prompts) * sampling.samples)
        groups = dict(collect(prompts, generate, self._verify, self.specs, verdict_wait_s=wait_s))
        return [groups[index] for index in range(len(prompts))]

    def _verdict_wait_s(self, completions: int) -> float:
        # The pool answers every call within its deadline and its restarts; this wait only guards against the pool.
        return 60.0 + 4 * self.settings.verification.deadline_s * completions

    def _verify(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Mapping[str, Future[Verdict]]]:
        names = [spec.name for spec in choose(self.specs, prompt.row)]
        row = columns_of(prompt.text, prompt.row)
        texts, tokens = [one.text for one in completions], [len(one.token_ids) for one in completions]
        verdicts = judge(self._pool, names, prompt.reference, row, texts, tokens)
        for future in (future for named in verdicts for future in named.values()):
            future.add_done_callback(lambda _: ACTIVITY.moved())
        return verdicts

    def push_weights(self, groups: Sequence[Group] = ()) -> float:
        """Bring the learner's weights to the generators and prove it on tokens of `groups`."""
        self.turns.generate()
        difference = self.sync.push(self.step, self._probe(groups))
        self.rollouts.pushed(self.step)
        return difference

    def push_metrics(self) -> dict[str, float]:
        """What sparse pushes have carried since the last step, those to restarted generators included."""
        return push_metrics(self.learner.take_pushed()) if self.settings.weight_sync.sparse else {}

    def generator_metrics(self) -> dict[str, float]:
        """How much slower than its peers the slowest generator is; says so once, where it is much."""
        metrics, lines = self._slow.step(self.generators.take_sampled())
        for line in lines:
            note_fault(self.folder, line)
            self._progress.show(line)
        return metrics

    def _push_to(self, replica: int) -> None:
        """Bring the present weights to one replica, which was restarted, and prove it."""
        # The learner hands its weights over after the steps that it has begun, and they are the next version then.
        version = max(self.step, self._begun)
        restarted = self.generators.only(replica)
        with self.learner.pushing_to(restarted.actors):
            replace(self.sync, generators=restarted).push(version, self._probe())

    def _probe(self, groups: Sequence[Group] = ()) -> list[list[int]]:
        limits = self.settings.weight_sync
        sampled = [(*group.prompt.token_ids, *group.rollouts[0].completion.token_ids) for group in groups]
        probe = sampled or [prompt.token_ids for prompt in self.training.prompts if len(prompt.token_ids) > 1]
        # vLLM scores a sequence only where one more token would fit.
        longest = min(limits.probe_tokens, self.settings.max_sequence_tokens - 1)
        return [list(ids[:longest]) for ids in probe[: limits.probe_sequences]]

    def evaluation_is_due(self) -> bool:
        """After every so many steps, and after the last."""
        evaluation = self.settings.evaluation
        return evaluation is not None and (self.step % evaluation.every == 0 or self.step == self.settings.train.steps)

    def report_evaluations(self, *, wait: bool = False) -> None:
        """Report what the background has evaluated meanwhile; with `wait`, all that it still owes."""
        if self._background is None:
            return
        owed = self._background.owed if wait else 0
        with self._progress.phase(f"waiting for {owed} evaluation(s)") if owed else contextlib.nullcontext():
            for late in self._background.finished(wait=wait):
                self.report.late(late.step, late.metrics)

    def report_busy(self, watch: Stopwatch) -> None:
        """Keep what driver and actors did, and when, as far as they have told; `watch` is the newest step's."""
        self._busy.merge(watch.busy.take())
        self._step_began = watch.begun_at
        self._report_busy()

    def _report_busy(self) -> None:
        if self._step_began is None:
            return
        lanes = self.learner.take_busy() | self.generators.take_busy() | self._pool.take_busy()
        self.report.busy(self.step, self._step_began, {DRIVER: self._busy.take(), **lanes})

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        newest = checkpoint.latest(self.folder)
        if newest is not None and newest.step == self.step:
            return
        watch = Stopwatch()
        self.turns.learn()
        phase = self._progress.phase(f"writing the checkpoint of step {self.step}")
        with phase, self._busy.during("checkpoint"):
            checkpoint.write(
                self.folder,
                self.step,
                self.learner.save,
                {"step": self.step, "cursor": self.cursor.state_dict(), "rollouts": self.rollouts.state_dict()},
                self.settings.train.keep_checkpoints,
            )
        self._checkpoint_s = watch.elapsed_s
        # A step that was reported has its line; the checkpoint belongs to it.
        self._report_busy()

    def take_checkpoint_metrics(self) -> dict[str, float]:
        """Seconds of the checkpoint written since this was last asked, if one was."""
        seconds, self._checkpoint_s = self._checkpoint_s, None
        return {} if seconds is None else {"time/checkpoint_s": seconds}
