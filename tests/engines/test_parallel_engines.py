"""vLLM engines on several devices, cut by matrices or by layers: on a CPU, each device is a process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from setups_for_tests import CPU, generator_setup, learner_setups, random_batch, random_sequences
from transformers import AutoTokenizer

from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.types import Completion, Prompt, SamplingParams
from grpo.weights.sync import TOLERANCES, WeightSync

pytestmark = [pytest.mark.slow, pytest.mark.long]

PROBE = [list(sequence.token_ids) for sequence in random_sequences(3, seed=9)]
WAYS = ({"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2})


TOLD: list[str] = []


@pytest.fixture(scope="module")
def pair(ray_running: None, tied_policy: str) -> Iterator[tuple[LearnerGroup, GeneratorGroup]]:
    """A learner of one rank; a replica for each way."""
    setups = []
    for replica, way in enumerate(WAYS):
        base = generator_setup(tied_policy, engine="auto", replica=replica)
        cut = base.generator.model_copy(update=way)
        setups.append(dataclasses.replace(base, generator=cut, transport="gloo"))
    with Cluster(CPU, Plan(1, 1, 2, 2, 2)) as cluster:
        joins = (
            cluster.start_learner(learner_setups(tied_policy, zero_stage=1)),
            cluster.start_generators(setups, 120, 120, TOLD.append),
        )
        learner, generators = joins[0](), joins[1]()
        learner.connect(generators, "gloo", 2, 60.0)
        yield learner, generators


def test_pushes_reach_every_part_of_an_engine(pair: tuple[LearnerGroup, GeneratorGroup]) -> None:
    learner, generators = pair
    sync = WeightSync(learner, generators, 1 << 14, TOLERANCES["float32"])
    assert max(sync.compare(PROBE)) < 1e-5
    for version in (1, 2):
        learner.step(random_batch(1, seed=version))
        assert min(sync.compare(PROBE)) > 10 * TOLERANCES["float32"], "the probe must see a step that was not pushed"
        assert sync.push(version, PROBE) < 1e-5
    # One that was lost is passed over until another is in its place.
    assert generators._restarts == 0


def test_a_profile_has_each_part_of_an_engine(
    pair: tuple[LearnerGroup, GeneratorGroup], tied_policy: str, tmp_path: Path
) -> None:
    generators = pair[1]
    generators.start_profile()
    sampled(generators, tied_policy)
    profiles = generators.stop_profile(str(tmp_path))
    names = [f"generator_{replica}_worker_{rank}.json.gz" for replica in range(2) for rank in range(2)]
    assert [profile.trace for profile in profiles] == [tmp_path / name for name in names]
    assert all(profile.trace.is_file() and profile.operators_s > 0 for profile in profiles)


def sampled(generators: GeneratorGroup, policy: str) -> list[tuple[tuple[int, ...], Completion]]:
    """Prompts with what was sampled for them: six groups of four."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    texts = [f"{n}+{n}=?" for n in range(6)]
    asked = [Prompt(f"p{n}", text, tuple(tokenizer(text)["input_ids"]), None, {}) for n, text in enumerate(texts)]
    groups = dict(generators.generate(asked, SamplingParams(4, 24, 1.0), range(6)))
    assert sorted(groups) == list(range(6)) and all(len(group) == 4 for group in groups.values())
    return [(asked[index].token_ids, one) for index, group in groups.items() for one in group]


def test_samples_are_the_policys(pair: tuple[LearnerGroup, GeneratorGroup], tied_policy: str) -> None:
    learner, generators = pair
    learner.step(random_batch(1, seed=3))
    WeightSync(learner, generators, 1 << 14, TOLERANCES["float32"]).push(3, PROBE)
    found = sampled(generators, tied_policy)
    scored = learner.score([[*prompt, *one.token_ids] for prompt, one in found])()
    for row, (prompt, one) in zip(scored, found, strict=True):
        assert [span.policy_version for span in one.spans] == [3]
        assert row[len(prompt) - 1 :] == pytest.approx(one.logprobs, abs=1e-4)
    # Both replicas had work, or one way was not tried.
    assert [replica.tokens > 0 for replica in generators.take_sampled()] == [True, True]
    assert generators._restarts == 0


# Its successor starts beside the engine that goes on, which takes minutes on a busy machine.
@pytest.mark.timeout(600)
def test_an_engine_that_loses_one_of_its_processes_is_replaced(
    pair: tuple[LearnerGroup, GeneratorGroup], tied_policy: str
) -> None:
    learner, generators = pair
    sync = WeightSync(learner, generators, 1 << 14, TOLERANCES["float32"])
    replaced: list[int] = []
    generators.on_restart(lambda replica: replaced.append(replica))
    # From the first push on a successor is given weights; on its own this test has none before it.
    assert sync.push(3, PROBE) < 1e-5
    before = generators._replicas[1]._processes
    assert before is not None
    workers = [pid for pid, _ in before.created if "Worker" in " ".join(psutil.Process(pid).cmdline())]
    assert len(workers) == 2, "a process for each stage"
    psutil.Process(workers[1]).kill()
    until = time.monotonic() + 300
    # The other one goes on alone meanwhile.
    while not TOLD and time.monotonic() < until:
        assert len(sampled(generators, tied_policy)) == 24
        time.sleep(0.5)
    assert replaced == [1] and "generator 1 was restarted" in " ".join(TOLD), TOLD
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid, _ in before.created if psutil.pid_exists(pid)], 20)
    assert not alive
    # The link knows the new one, whole, and the other still.
    assert sync.push(4, PROBE) < 1e-5
