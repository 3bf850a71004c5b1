"""`grpo sft`: supervised fine-tuning on pairs of prompt and response, for the cold start of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo import files
from grpo.algorithm.minibatches import batch
from grpo.algorithm.packing import TrainingSequence
from grpo.cluster.claim import plan_of
from grpo.cluster.cluster import Cluster
from grpo.cluster.learner_group import LearnerGroup
from grpo.config import SftConfig
from grpo.data.bad_rows import lines_of
from grpo.data.cursor import Cursor
from grpo.data.supervised import load_supervised, supervised_turns
from grpo.learner.setup import LearnerSetup
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions, load_tokenizer, local_or_hub
from grpo.report import run_files
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress
from grpo.report.recorder import RunRecorder
from grpo.report.timeline import DRIVER
from grpo.report.trackers import open_trackers, require_trackers
from grpo.run import checkpoint
from grpo.run.folder import open_folder, skipped_folder
from grpo.run.interrupt import Interrupt
from grpo.run.stopwatch import Stopwatch
from grpo.types import Phase
from grpo.view.page import write_report


def sft(settings: SftConfig, progress: Progress) -> ClosingTable:
    """Fine-tune a policy, or a new policy with random weights, on the responses of a data set.

    The loss is the mean negative log-likelihood of the response's tokens, including the end token. The run writes the
    policy in Hugging Face format to `policy/` in the run's folder.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder or the cluster.
        TimeoutError: a deadline passed; the message names the operation.
    """
    require_peft(settings.learner)
    require_trackers(settings.report.trackers)
    check_positions(settings)
    folder, schedule = Path(settings.run.folder), settings.sft
    saved = open_folder(settings.run, settings, progress)
    start = _starting_policy(settings, folder, make_anew=saved is None)
    with progress.phase(Phase.DATA, "reading the data"):
        data = load_supervised(settings.data, load_tokenizer(start), max_tokens=schedule.max_tokens)
    rows, dropped = data.sequences, data.dropped
    if dropped:
        progress.show(f"{dropped} of {dropped + len(rows)} rows are longer than sft.max_tokens and are left out")
    if data.left_out:
        progress.show(f"rows left out (data.on_bad_row=drop): {lines_of(data.left_out)}")
    cursor = Cursor(rows, settings.run.seed)
    trackers = open_trackers(
        settings.report.trackers, folder, config=settings.model_dump(mode="json"), project=settings.report.project
    )
    with (
        RunRecorder(folder, trackers=trackers, progress=progress, total_steps=schedule.steps) as report,
        Interrupt() as interrupt,
    ):
        with progress.phase(Phase.START, "starting Ray"):
            cluster = Cluster(settings.cluster, plan_of(settings))
        with cluster:
            with progress.phase(Phase.START, f"starting {settings.learner.ranks} learner rank(s)"):
                learner = cluster.start_learner(_setups(settings, start, cluster))()
            report.truncate_after(saved.step if saved else -1)
            step = _resume(saved, learner, cursor) if saved else 0
            while step < schedule.steps and not interrupt.requested:
                drawn, watch = cursor.next(schedule.batch_size), Stopwatch()
                metrics = _step(settings, learner, drawn, watch)
                step += 1
                report.busy(step, watch.begun_at, {DRIVER: watch.busy.take()} | learner.take_busy())
                report.step(step, metrics)
                if step == schedule.steps:
                    # Export before the last checkpoint, because that checkpoint marks the job as complete.
                    _export(learner, folder)
                if step % schedule.checkpoint_every == 0 or step == schedule.steps or interrupt.requested:
                    with progress.phase(Phase.CHECKPOINT, f"writing the checkpoint of step {step}"):
                        checkpoint.write(folder, step, learner.save, {"cursor": cursor.state_dict()}, keep=1)
        return report.finish(write_report)


def _export(learner: LearnerGroup, folder: Path) -> None:
    """Write `policy/`. The folder appears only when it is complete."""
    with files.whole_folder(folder / run_files.POLICY) as partial:
        learner.export(str(partial.absolute()))


def _starting_policy(settings: SftConfig, folder: Path, *, make_anew: bool) -> str:
    new = settings.policy.new
    if new is None:
        return local_or_hub(settings.policy)
    random_policy = folder / run_files.RANDOM_POLICY
    # An earlier attempt without a checkpoint may have made the policy from other settings, so make it again.
    if make_anew or not random_policy.is_dir():
        # The import of the models takes seconds.
        from grpo.policy.new import make_policy

        texts = []
        if new.tokenizer == "bpe":
            turns, _ = supervised_turns(settings.data)
            texts = ["".join(message["content"] for message in turn.messages) + turn.response for turn in turns]
        make_policy(new, texts, random_policy, settings.run.seed)
    return str(random_policy.absolute())


def _setups(settings: SftConfig, start: str, cluster: Cluster) -> list[LearnerSetup]:
    return [
        LearnerSetup(
            policy_path=start,
            reference_path=start,
            dtype=settings.policy.dtype,
            algorithm=None,
            learner=settings.learner,
            temperature=1.0,
            total_steps=settings.sft.steps,
            seed=settings.run.seed,
            rank=rank,
            world_size=settings.learner.ranks,
            device=cluster.device,
            collective_deadline_s=settings.cluster.longest_wait_s(),
            skipped_folder=skipped_folder(settings.run),
        )
        for rank in range(settings.learner.ranks)
    ]


def _resume(saved: checkpoint.Checkpoint, learner: LearnerGroup, cursor: Cursor[TrainingSequence]) -> int:
    learner.load(str(saved.folder.absolute()))
    cursor.load_state_dict(saved.driver_state()["cursor"])
    return saved.step


def _step(
    settings: SftConfig, learner: LearnerGroup, rows: Sequence[TrainingSequence], watch: Stopwatch
) -> dict[str, float]:
    watch.start(Phase.LEARN)
    trained = sum(row.trained_tokens for row in rows)
    packed = batch(
        rows, denominator=float(trained), ranks=learner.ranks, microbatch_tokens=settings.learner.microbatch_tokens
    )
    update = learner.step(packed)
    watch.start(None)
    times = watch.metrics()
    tokens = sum(len(row.token_ids) for row in rows)
    return {
        **{f"learner/{name}": value for name, value in {**update, **packed.shares()}.items()},
        **times,
        "throughput/tokens_per_s": tokens / times["time/step_s"],
    }
