"""Pushes of a run: which version of the policy the generators get, and on which tokens the push is proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grpo import config
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.rollout.collector import Collector
from grpo.run.metrics import push_metrics
from grpo.run.turns import Turns
from grpo.types import Group, Prompt
from grpo.weights.sync import TOLERANCES, WeightSync


class Pushing:
    """Brings the learner's weights to the generators, to all after a step and to one that was restarted."""

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
    ) -> None:
        """Say how weights travel; nothing is pushed yet.

        Args:
            settings: the run's config.
            learner: where the weights come from.
            generators: where they go.
            turns: says when the generators are awake.
            rollouts: hears which version the generators sample from.
            prompts: the training prompts, to prove a push on before anything was sampled.
            transport: how the bytes travel.
            version: the policy's version, which is the number of steps that made it.
        """
        self.version = version
        """The version that the learner will be when it has done all that was asked of it."""
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
        generators.on_restart(self._push_to)

    def push(self, groups: Sequence[Group] = ()) -> float:
        """Bring the learner's weights to the generators and prove it on tokens of `groups`: the difference in nats."""
        self._turns.generate()
        difference = self._sync.push(self.version, self._probe(groups))
        self._rollouts.pushed(self.version)
        return difference

    def take_metrics(self) -> dict[str, float]:
        """What sparse pushes have carried since the last step, those to restarted generators included."""
        return push_metrics(self._learner.take_pushed()) if self._settings.weight_sync.sparse else {}

    def _push_to(self, replica: int) -> None:
        """Give the present weights to a generator that was restarted."""
        # The learner hands its weights over after the steps that it has begun, and they are the next version then.
        restarted = self._generators.only(replica)
        with self._learner.pushing_to(restarted.actors):
            replace(self._sync, generators=restarted).push(self.version, self._probe())

    def _probe(self, groups: Sequence[Group] = ()) -> list[list[int]]:
        limits = self._settings.weight_sync
        sampled = [(*group.prompt.token_ids, *group.rollouts[0].completion.token_ids) for group in groups]
        probe = sampled or [prompt.token_ids for prompt in self._prompts if len(prompt.token_ids) > 1]
        # vLLM scores a sequence only where one more token would fit.
        longest = min(limits.probe_tokens, self._settings.max_sequence_tokens - 1)
        return [list(ids[:longest]) for ids in probe[: limits.probe_sequences]]
