"""Pushes of a run. A push sends the policy's weights to the generators, and proves that the weights arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from grpo import config
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.rollout.collector import Collector
from grpo.run.metrics import push_metrics
from grpo.run.turns import Turns
from grpo.types import Group, Prompt
from grpo.weights.rounding import Rounding, max_or_nan
from grpo.weights.sync import TOLERANCES, WeightSync


class Pushing:
    """Pushes the learner's weights: to all generators after a step, and to a generator after its restart."""

    def __init__(
        self,
        settings: config.TrainConfig,
        learner: LearnerGroup,
        generators: GeneratorGroup,
        turns: Turns,
        rollouts: Collector,
        prompts: Sequence[Prompt],
        transport: config.ChosenTransport,
        version: int,
        tell: Callable[[str], object],
    ) -> None:
        """Connect learner and generators. Nothing is pushed yet.

        Args:
            settings: the run's config.
            learner: source of the weights.
            generators: receivers of the weights.
            turns: decides whether the learner or the generators use the GPUs' memory now.
            rollouts: collector, which must know the policy version with which the generators sample.
            prompts: training prompts; the proof of a push uses them before the first sample.
            transport: transport of the weights.
            version: the policy's version, which is the number of steps that made the policy.
            tell: function that gets a line about the tolerance of the proofs.
        """
        self.version = version
        """The version of the learner's policy after all steps that have been started."""
        self._settings = settings
        self._learner, self._generators = learner, generators
        self._turns, self._rollouts = turns, rollouts
        self._prompts = prompts
        sync = settings.weight_sync
        if transport != "object_store":
            workers = settings.generator.devices
            learner.connect(generators, transport, workers, sync.deadline_s, sparse=sync.sparse)
        elif sync.sparse:
            learner.push_changes(generators)
        tolerance = sync.tolerance or TOLERANCES[settings.policy.dtype]
        self._sync = WeightSync(learner, generators, sync.bucket_mib << 20, tolerance)
        self._resumed = version > 0
        self._tell = tell
        self._measured = False
        generators.on_restart(self._push_to)

    def push(self, groups: Sequence[Group] = ()) -> float:
        """Push the weights to all generators; prove the push on tokens of `groups`; return the difference in nats."""
        self._turns.generate()
        if not self._measured:
            self._measure_rounding()
        difference = self._sync.push(self.version, self._probe(groups))
        self._rollouts.pushed(self.version)
        return difference

    def _measure_rounding(self) -> None:
        """Before the first push, both sides hold the weights of one policy, so they differ by rounding alone.

        The learner and the generators have loaded the same folder: the run's policy, or the policy of the checkpoint.

        Raises:
            WeightMismatch: in a new run, the difference is too large for rounding.
            ValueError: `weight_sync.tolerance` is below the rounding.
        """
        dtype, chosen = self._settings.policy.dtype, self._settings.weight_sync.tolerance
        rounding = Rounding(max_or_nan(self._sync.compare(self._probe())), dtype)
        if self._resumed and rounding.problem(chosen):
            # The first push gives both sides the checkpoint's weights, and then proves it with the preset tolerance.
            self._tell(f"{rounding}; this is no rounding, so the tolerance of a push is {self._sync.tolerance:.3g}")
        else:
            self._sync = replace(self._sync, tolerance=rounding.tolerance(chosen))
            self._tell(f"{rounding}; a push may differ by {self._sync.tolerance:.3g}")
        self._measured = True

    def take_metrics(self) -> dict[str, float]:
        """Return the metrics of sparse pushes since the last step, including pushes to restarted generators."""
        return push_metrics(self._learner.take_pushed()) if self._settings.weight_sync.sparse else {}

    def _push_to(self, replica: int) -> None:
        """Give the current weights to a restarted generator."""
        # The learner sends its weights after all steps that have been started, so the weights have the version
        # `self.version`.
        restarted = self._generators.only(replica)
        with self._learner.pushing_to(restarted.actors):
            replace(self._sync, generators=restarted).push(self.version, self._probe())

    def _probe(self, groups: Sequence[Group] = ()) -> list[list[int]]:
        limits = self._settings.weight_sync
        first = [(group.prompt, group.rollouts[0].completion) for group in groups]
        sampled = [(*completion.prompt_ids(prompt), *completion.token_ids) for prompt, completion in first]
        probe = sampled or [prompt.token_ids for prompt in self._prompts if len(prompt.token_ids) > 1]
        # vLLM scores a sequence only if one more token would fit into the model's length.
        longest = min(limits.probe_tokens, self._settings.max_sequence_tokens - 1)
        return [list(ids[:longest]) for ids in probe[: limits.probe_sequences]]
