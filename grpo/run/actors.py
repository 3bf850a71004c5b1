"""Start a run's learner and generators in the order in which their memory fits."""

from __future__ import annotations

import functools
from collections.abc import Callable

from grpo import config
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.generator.setup import generator_setups
from grpo.learner.setup import learner_setups
from grpo.run.checkpoint import Checkpoint
from grpo.run.folder import skipped_folder
from grpo.run.turns import Turns


def start_actors(
    settings: config.TrainConfig,
    cluster: Cluster,
    policy_path: str,
    base_path: str,
    transport: config.ChosenTransport,
    resumed: Checkpoint | None,
    tell: Callable[[str], object],
) -> tuple[LearnerGroup, GeneratorGroup, Turns]:
    """Start learner and generators; load the checkpoint's state into the learner.

    If they share GPUs, the generators start last. vLLM measures the free memory of its GPU while it starts, and would
    count memory that the learner allocates at the same time as its own. With `cluster.sleep`, vLLM also needs the
    memory that the learner frees when it sleeps.

    Args:
        settings: the run's config.
        cluster: reserved devices.
        policy_path: policy to start from: a checkpoint's policy, or the base policy.
        base_path: policy that the whole run started from.
        transport: transport of the weights.
        resumed: checkpoint to continue from, or None.
        tell: function that gets a line about each restart of a generator.
    """
    on_gpu = cluster.device == "cuda"
    takes_turns = settings.cluster.sleep and on_gpu
    join_learner = cluster.start_learner(
        learner_setups(settings, policy_path, base_path, cluster.device, skipped_folder(settings.run))
    )
    start_generators = functools.partial(
        cluster.start_generators,
        generator_setups(settings, policy_path, base_path, cluster.device, transport, sleeps=takes_turns),
        settings.rollout.deadline_s,
        settings.weight_sync.deadline_s,
        tell,
    )
    join_generators = None if settings.cluster.share_gpus and on_gpu else start_generators()
    learner = join_learner()
    if resumed:
        learner.load(str(resumed.folder.absolute()))
    if takes_turns:
        learner.sleep()
    generators = (join_generators or start_generators())()
    return learner, generators, Turns(learner, generators, enabled=takes_turns)
