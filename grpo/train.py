"""`grpo train`: the whole algorithm, from prompts to gradient, on one screen.

Data flows one way; the weights are the only edge back.
"""

from __future__ import annotations

from grpo.advantages import group_normalised
from grpo.batching import minibatches
from grpo.closing_table import ClosingTable
from grpo.config import TrainConfig
from grpo.interrupt import Interrupt
from grpo.progress import Progress
from grpo.rollout import known_rows, reward_tensors
from grpo.run import TrainingRun
from grpo.step_metrics import rollout_metrics, speed_metrics, update_metrics
from grpo.stopwatch import Stopwatch


def train(settings: TrainConfig, progress: Progress) -> ClosingTable:
    """Train a policy with GRPO (Shao et al. 2024, arXiv:2402.03300), or go on with a run.

    Each step samples a group of completions for each of P prompts from the current policy, scores them, and takes
    `algorithm.minibatches` optimizer steps on the clipped objective with group-normalised advantages.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder or the cluster.
        WeightMismatch: a generator does not compute what the learner computes.
        TimeoutError: something did not come within its deadline; the message says what.
        RuntimeError: verifiers fail too often.
    """
    algorithm, schedule = settings.algorithm, settings.train
    with TrainingRun(settings, progress) as run, Interrupt() as interrupt:
        run.push_weights()
        if run.step == 0:
            run.report.step(0, run.evaluate())
        while run.step < schedule.steps and not interrupt.requested:
            watch = Stopwatch()
            prompts = run.cursor.next(settings.rollout.prompts_per_step)
            groups = run.collect(prompts, watch)

            rewards_PG, valid_PG = reward_tensors(groups)
            advantages_PG = group_normalised(rewards_PG, valid_PG, scale_by_std=algorithm.divide_by_std)

            watch.start("learn")
            updates = [
                {**run.learner.step(batch), "padding_share": batch.padding_share}
                for batch in minibatches(
                    groups,
                    advantages_PG,
                    count=algorithm.minibatches,
                    ranks=run.learner.ranks,
                    microbatch_tokens=settings.learner.microbatch_tokens,
                    skip_without_advantage=algorithm.kl_coefficient == 0,
                )
            ]
            run.step += 1

            watch.start("sync")
            difference = run.push_weights(groups)
            watch.start(None)

            metrics = rollout_metrics(groups, advantages_PG) | update_metrics(updates) | speed_metrics(watch, groups)
            metrics |= {"sync/probe_mean_difference": difference} | run.verifier_metrics()
            metrics |= run.take_checkpoint_metrics()
            if run.evaluation_is_due():
                metrics |= run.evaluate()
            run.report.step(run.step, metrics, groups, known_rows(advantages_PG, valid_PG))
            if run.step % schedule.checkpoint_every == 0:
                run.save()
        run.save()
        return run.report.finish()
