"""`grpo train`: the training loop, from prompts to the gradient.

The generators send data to the learner. The learner sends only the weights back to the generators.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo.algorithm.choices import advantages_of, aggregation_of
from grpo.algorithm.minibatches import minibatches
from grpo.algorithm.objective import carries_loss
from grpo.algorithm.rescoring import kl_to_reference, proximal_logprobs
from grpo.algorithm.reward_models.apart import rewards_apart
from grpo.algorithm.signals.by_token import token_advantages
from grpo.config import TrainConfig
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress
from grpo.rollout.groups import known_rows, reward_tensors
from grpo.run.functions import Callbacks
from grpo.run.interrupt import Interrupt
from grpo.run.metrics import rollout_metrics, speed_metrics, update_metrics
from grpo.run.stopwatch import Stopwatch
from grpo.run.training import TrainingRun
from grpo.types import Phase
from grpo.view.page import write_report


def train(
    settings: TrainConfig, progress: Progress, after_step: Callable[[TrainingRun], None] | None = None
) -> ClosingTable:
    """Train a policy with GRPO (Shao et al. 2024, arXiv:2402.03300) or a related algorithm, or resume a run.

    Each step samples a group of completions from the current policy for each of P prompts, and scores the completions.
    The step then takes `algorithm.minibatches` optimizer steps on the configured objective (docs/objectives.md). If
    `rollout.max_policy_lag` is above 0, sampling for the next steps continues during the optimizer steps
    (docs/async.md).

    Raises:
        ValueError: the config does not fit the data, the policy, the folder or the cluster.
        WeightMismatch: a generator and the learner compute different log-probabilities after a push.
        TimeoutError: a deadline passed; the message names the operation.
        RuntimeError: verifiers fail too often, the loss or the gradient is not finite, or a user's function raised.
    """
    algorithm, schedule = settings.algorithm, settings.train
    callbacks = Callbacks(settings)
    with TrainingRun(settings, progress) as run, Interrupt() as interrupt:
        run.pushing.push()
        if run.step == 0:
            first = run.held_out.evaluate(run.step)
            run.held_out.keep_best(run.step, first)
            run.report.step(0, first)
        while run.step < schedule.steps and not interrupt.requested:
            watch = Stopwatch()
            groups = run.collect(watch)

            rewards_PG, valid_PG = reward_tensors(groups)
            carries_loss_PG = carries_loss(algorithm, groups, rewards_PG, valid_PG)

            watch.start(Phase.LEARN)
            run.turns.learn()
            kl_PG = kl_to_reference(settings, run.learner, groups, valid_PG)
            if algorithm.normalise_rewards == "apart":
                rewards_PG = rewards_apart(run.specs, groups, valid_PG)
            rewards_PG = rewards_PG - algorithm.kl_coefficient * kl_PG
            advantages_PG = advantages_of(algorithm, rewards_PG, valid_PG)
            by_token, signals = token_advantages(
                settings, run.learner, groups, advantages_PG, rewards_PG, valid_PG, run.specs, run.token_ends
            )
            batches = minibatches(
                groups,
                advantages_PG,
                count=algorithm.minibatches,
                ranks=run.learner.ranks,
                microbatch_tokens=settings.learner.microbatch_tokens,
                skip_without_advantage=algorithm.only_advantages_teach,
                carries_loss_PG=carries_loss_PG,
                proximal=proximal_logprobs(settings, run.learner, groups, advantages_PG, carries_loss_PG, by_token),
                aggregation=aggregation_of(algorithm, settings.rollout.max_completion_tokens),
                token_advantages=by_token,
            )
            updates = run.learn(batches)
            run.step += 1
            run.refresh_reference()

            watch.start(Phase.SYNC)
            difference = run.pushing.push(groups)
            watch.start(None)

            metrics = rollout_metrics(groups, settings, kl_PG) | update_metrics(updates) | speed_metrics(watch, groups)
            metrics |= {"sync/probe_mean_difference": difference} | run.verifier_metrics() | run.lag_metrics(groups)
            metrics |= signals | run.pushing.take_metrics() | run.generator_metrics() | run.take_checkpoint_metrics()
            if run.held_out.is_due(run.step):
                metrics |= run.held_out.evaluate(run.step)
            metrics |= callbacks.step(run.step, metrics, groups)
            run.held_out.keep_best(run.step, metrics)
            run.report_busy(watch)
            run.report.step(run.step, metrics, groups, known_rows(advantages_PG, carries_loss_PG))
            run.held_out.report_late()
            if run.step % schedule.checkpoint_every == 0 or callbacks.failed:
                callbacks.checkpoint(run.save())
            if after_step:
                after_step(run)
        callbacks.checkpoint(run.save())
        run.held_out.report_late(wait=not interrupt.requested)
        return run.report.finish(write_report)
