"""Every way to hold the optimizer's states either survives `cluster.sleep` to the bit, or is refused by the config."""

from __future__ import annotations

import dataclasses
import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, get_args

import pytest
import torch
from ranks_without_ray import free_port, small_microbatches
from setups_for_tests import learner_setups, without_speed
from torch import Tensor

from grpo import config
from grpo.config import Dtype, LearnerConfig, LoraConfig

pytestmark = [pytest.mark.slow, pytest.mark.long]
pytest.importorskip("peft")

RANKS = 2
OFFLOADS = get_args(LearnerConfig.model_fields["offload"].annotation)
STAGES = get_args(LearnerConfig.model_fields["zero_stage"].annotation)


@dataclasses.dataclass(frozen=True)
class Way:
    """How a learner holds its states."""

    zero_stage: int
    dtype: Dtype
    offload: str
    lora: bool

    def __str__(self) -> str:
        lora = ", LoRA" if self.lora else ""
        return f"ZeRO-{self.zero_stage}, {self.dtype}, offload {self.offload}{lora}"

    @property
    def learner(self) -> dict[str, Any]:
        """The section of the config."""
        lora = LoraConfig(rank=4, alpha=8) if self.lora else None
        return {"zero_stage": self.zero_stage, "offload": self.offload, "lora": lora, "ranks": RANKS}

    def refusal(self) -> str:
        """What the config says against sleeping in this way; empty if it says nothing."""
        tree = {
            "run": {"folder": "run"},
            "policy": {"path": "policy", "dtype": self.dtype},
            "data": {"path": "rows.jsonl"},
            "verifiers": [{"name": "answer", "use": "exact"}],
            "train": {"steps": 1},
            "cluster": {"device": "gpu", "share_gpus": True, "sleep": True},
            "generator": {"replicas": RANKS},
            "learner": {**self.learner, "lora": {"rank": 4, "alpha": 8} if self.lora else None},
        }
        return "; ".join(config.TrainConfig.model_validate(tree).problems())


WAYS = [Way(*each) for each in itertools.product(STAGES, get_args(Dtype), OFFLOADS, (False, True))]
REFUSED = [way for way in WAYS if way.refusal()]
ALLOWED = [way for way in WAYS if way not in REFUSED]
# DeepSpeed cannot even start with these; `LearnerConfig.problems` refuses them, asleep or not.
NO_LEARNER = [way for way in REFUSED if way.offload == "parameters"]


@dataclasses.dataclass(frozen=True)
class Story:
    """What rank 0 saw of a learner.

    Attributes:
        first: metrics of the step after the sleep with which a run begins.
        awake: metrics of the next step, without sleep. It uses Adam's moments of the first step.
        slept: metrics of the same step after the checkpoint was loaded and the learner slept.
        equal: whether both steps made the same policy, to the bit.
        pushed: whether the policy that was read asleep was always the policy that was read awake.
        moved: states that DeepSpeed counted as moved, asleep and after waking.
    """

    first: dict[str, float]
    awake: dict[str, float]
    slept: dict[str, float]
    equal: bool
    pushed: bool
    moved: tuple[set[str], set[str]]


def on_rank(rank: int, port: int, path: str, folder: str) -> tuple[dict[Way, Story], dict[Way, str]]:
    """Stories of all ways that are allowed, and the errors of those that are refused for DeepSpeed's sake."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    stories, errors = {}, {}
    for way in ALLOWED:
        stories[way] = story(way, rank, port, path, f"{folder}/{way}")
    for way in REFUSED:
        if way in NO_LEARNER:
            continue
        learner = started(way, rank, port, path, folder)
        try:
            learner.sleep()
        except (AttributeError, AssertionError) as problem:
            errors[way] = repr(problem)
        learner._engine.destroy()
    return stories, errors


def started(way: Way, rank: int, port: int, path: str, folder: str) -> Any:
    from grpo.learner.rank import LearnerRank

    (base,) = learner_setups(path, dtype=way.dtype)
    learner = base.learner.model_copy(update=way.learner)
    setup = dataclasses.replace(base, learner=learner, rank=rank, world_size=RANKS, skipped_folder=f"{folder}/skipped")
    return LearnerRank(setup, "127.0.0.1", port)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def story(way: Way, rank: int, port: int, path: str, folder: str) -> Story:
    learner = started(way, rank, port, path, folder)
    moved: tuple[set[str], set[str]] = (set(), set())
    same = []

    def policy() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in learner.weights()}

    def counted() -> set[str]:
        return {state.value for state in getattr(learner._engine.optimizer, "offloaded_states", ())}

    def nap() -> None:
        before = policy()
        learner.sleep()
        moved[0].update(counted())
        # A push reads the policy while the learner sleeps.
        during = policy()
        learner.wake()
        moved[1].update(counted())
        same.append(equal(before, during))

    def step(seed: int) -> dict[str, float]:
        return without_speed(learner.step(small_microbatches(seed, RANKS).ranks[rank]))

    nap()
    first = step(0)
    learner.save(folder)
    torch.distributed.barrier()
    awake = step(1)
    weights = policy()
    learner.load(folder)
    nap()
    slept = step(1)
    told = Story(first, awake, slept, equal(weights, policy()), all(same), moved)
    learner._engine.destroy()
    return told


@pytest.fixture(scope="module")
def told(tied_policy: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Way, Story], dict[Way, str]]:
    folder, port = str(tmp_path_factory.mktemp("sleeps")), free_port()
    # Starting the engines takes longer than the stories. So one process for each rank plays all of them.
    context = get_context("forkserver")
    context.set_forkserver_preload(["engines_on_cpu"])
    with ProcessPoolExecutor(RANKS, mp_context=context) as pool:
        running = [pool.submit(on_rank, rank, port, tied_policy, folder) for rank in range(RANKS)]
        first, *_ = [each.result(timeout=280) for each in running]
        return first


@pytest.mark.parametrize("way", ALLOWED, ids=str)
def test_a_learner_that_slept_takes_the_same_steps(told: tuple[dict[Way, Story], dict[Way, str]], way: Way) -> None:
    """After a checkpoint was loaded, too: that is how a run resumes."""
    stories, _ = told
    found = stories[way]
    assert found.slept == found.awake
    assert found.awake["skipped_steps"] == 0 and found.awake["gradient_norm"] > 0
    assert found.equal and found.pushed
    # The sleep with which a run begins: the steps after it equal those of any other way, within rounding.
    usual = stories[Way(1, "float32", "none", way.lora)]
    close = 1e-5 if way.dtype == "float32" else 0.05
    for one, other in ((found.first, usual.first), (found.awake, usual.awake)):
        assert one["loss"] == pytest.approx(other["loss"], rel=close, abs=close)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=close)


@pytest.mark.parametrize("way", ALLOWED, ids=str)
def test_sleep_moves_what_is_not_in_the_host_s_memory(told: tuple[dict[Way, Story], dict[Way, str]], way: Way) -> None:
    asleep, awake = told[0][way].moved
    assert asleep == ({"optim_states", "hp_params"} if way.offload == "none" else set())
    assert awake == set()


def test_what_the_config_refuses_does_not_work(told: tuple[dict[Way, Story], dict[Way, str]]) -> None:
    """If a release of DeepSpeed moves these states too, `_sleep_problems` should allow them."""
    _, errors = told
    assert errors.keys() == set(REFUSED) - set(NO_LEARNER)


def test_every_way_is_allowed_or_refused_with_a_remedy() -> None:
    assert len(WAYS) == 36 and len(ALLOWED) == 22
    for way in REFUSED:
        cause = "offload=parameters needs learner.zero_stage=3" if way in NO_LEARNER else "cannot move the optimizer"
        assert cause in way.refusal() and "use " in way.refusal(), way
