"""A run's verifiers, in a pool that training and evaluation share."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from grpo import config
from grpo.cluster import activity
from grpo.cluster.reward_models.group import RewardModelProcess
from grpo.cluster.reward_models.opening import open_model
from grpo.cluster.verifiers.nodes import NodePool
from grpo.config.verifiers import specs_of
from grpo.policy.stored import load_tokenizer
from grpo.report.progress import Progress
from grpo.rollout.groups import Verifying, judge_group
from grpo.run.metrics import verifier_metrics
from grpo.types import ActorId, ActorKind, Completion, Phase, Prompt
from rewards.build import REWARD_MODEL
from rewards.judging import verdicts_wait_s
from rewards.pool import VerifierPool
from rewards.pool.busy_clock import Busy
from rewards.selection import choose
from rewards.verdict import Verdict


class Verification:
    """The verifiers of a run; `open` starts them."""

    _pool: VerifierPool | NodePool

    def __init__(self, settings: config.TrainConfig) -> None:
        """Build the specifications of the verifiers; no process is started yet."""
        self._settings = settings.verification
        self.specs = specs_of(settings.verifiers, settings.verification)
        self._start_s = settings.cluster.start_deadline_s
        self._models: dict[str, RewardModelProcess] = {}

    def open(self, opened: contextlib.ExitStack, progress: Progress) -> None:
        """Start the workers on this machine; if `verification.per_node` is set, on every node of the Ray cluster."""
        settings = self._settings.model_dump(include={"workers", "deadline_s", "overlap"})
        settings["memory_mib"] = self._settings.memory_mib
        per_node = self._settings.per_node
        with progress.phase(Phase.START, f"starting the verifiers{' on every node' if per_node else ''}"):
            if per_node:
                self._pool = opened.enter_context(NodePool(self.specs, **settings))
            else:
                self._pool = opened.enter_context(VerifierPool(self.specs, **settings))

    def open_models(
        self, opened: contextlib.ExitStack, progress: Progress, policy_path: str, dtype: config.Dtype, longest: int
    ) -> None:
        """Start the reward models, if there are any. Ray must run.

        Args:
            opened: closes the models.
            progress: display.
            policy_path: folder or hub name of the policy that the run started from.
            dtype: number format of the policy, which the models get too.
            longest: tokens of the longest prompt with the longest completion.

        Raises:
            ValueError: a model cannot score this policy's completions, or cannot be loaded.
            TimeoutError: a model was not loaded in time.
        """
        named = [spec for spec in self.specs if spec.use == REWARD_MODEL]
        if not named:
            return
        tokenizer = load_tokenizer(policy_path)
        with progress.phase(Phase.START, f"loading {len(named)} reward model(s)"):
            for spec in named:
                model = open_model(spec, tokenizer, policy_path, dtype, longest, self._start_s)
                self._models[spec.name] = opened.enter_context(model)

    def _score(
        self, prompt: Prompt, completions: Sequence[Completion], verdicts: Sequence[dict[str, Future[Verdict]]]
    ) -> None:
        """Begin to score a prompt's completions by the reward models that judge its row; add the future verdicts."""
        for spec in choose(self.specs, prompt.row):
            if spec.name in self._models:
                scores = self._models[spec.name].submit(prompt.token_ids, [each.token_ids for each in completions])
                for named, future in zip(verdicts, scores, strict=True):
                    named[spec.name] = future

    def start(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Mapping[str, Future[Verdict]]]:
        """Begin to judge a prompt's completions; return the future verdicts of each completion by verifier name."""
        verdicts = judge_group(self._pool, self.specs, prompt, completions)
        self._score(prompt, completions, verdicts)
        # The pool's threads set the verdicts. In these threads, `current` would return another activity.
        driven = activity.current()
        for future in (future for named in verdicts for future in named.values()):
            future.add_done_callback(lambda _: driven.moved())
        return verdicts

    def verifying(self) -> Verifying:
        """Return a container for groups whose verdicts are pending."""
        return Verifying(self.start, self.specs)

    def wait_s(self, completions: int) -> float:
        """Return how long a pool that does not hang may take to judge this number of completions, in seconds."""
        return verdicts_wait_s(completions, self._settings.deadline_s)

    def take_metrics(self) -> dict[str, float]:
        """Return latencies and cache hits of the verdicts since the last call."""
        recent = self._pool.take_recent()
        for name, model in self._models.items():
            tally = model.take_recent()
            if tally.statuses:
                recent[name] = tally
        return verifier_metrics(recent)

    def take_busy(self) -> dict[ActorId, Busy]:
        """Return the workers' busy times since the last call."""
        if isinstance(self._pool, NodePool):
            return self._pool.take_busy()
        return {ActorId(ActorKind.VERIFIERS): busy for busy in self._pool.take_busy().values()}
