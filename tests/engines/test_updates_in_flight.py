"""New weights while vLLM samples, and a vLLM that dies: which version sampled what, and nothing lost or twice."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from setups_for_tests import CPU, generator_setup
from transformers import AutoModelForCausalLM

from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.config import NewPolicyConfig
from grpo.policy.new import make_policy
from grpo.types import Completion, Finished, Request, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.long]

# So many words that a random policy seldom says the one that ends a completion.
SHAPE = NewPolicyConfig(
    hidden_size=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    intermediate_size=96,
    tie_embeddings=False,
    max_position=256,
    alphabet="".join(chr(0x4E00 + i) for i in range(400)),
)
SAMPLING = SamplingParams(2, 240)
IN_ACTOR, OWN_PROCESS, RESTARTING = range(3)
REQUESTS = 60


@dataclass
class Running:
    """A replica of each kind, with two policies to sample from; `told` is what the group said."""

    group: GeneratorGroup
    paths: list[str]
    told: list[str]
    version: int = 0

    def push(self) -> None:
        """The policy that is not in place, as the next version."""
        self.version += 1
        self.group.load_weights(self.weights(), self.version)

    def weights(self) -> list[Any]:
        data = (Path(self.paths[self.version % 2]) / "model.safetensors").read_bytes()
        return [ray.put(np.frombuffer(data, dtype=np.uint8))]

    def policy(self, version: int) -> torch.nn.Module:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(self.paths[version % 2], dtype=torch.float32)
        return model


@pytest.fixture(scope="module")
def running(ray_running: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("policies")
    for seed in (0, 1):
        make_policy(SHAPE, [], folder / str(seed), seed)
        _sharpen(folder / str(seed))
    paths = [str(folder / "0"), str(folder / "1")]
    told: list[str] = []
    setups = [
        dataclasses.replace(setup, max_sequence_tokens=250)
        for setup in (
            generator_setup(paths[0], replica=IN_ACTOR),
            generator_setup(paths[0], replica=OWN_PROCESS, engine="own_process"),
            dataclasses.replace(generator_setup(paths[0], replica=RESTARTING), partial="restart"),
        )
    ]
    with Cluster(CPU, Plan(0, 1, 3, 1, 1)) as cluster:
        yield Running(cluster.start_generators(setups, 240, 240, told.append)(), paths, told)


def _sharpen(folder: Path) -> None:
    """Make attention matter: with its first weights a policy hardly looks at what came before."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            for weights in (layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight):
                weights.mul_(8.0)
    model.save_pretrained(folder)


def requests(first_seed: int = 0) -> list[Request]:
    return [Request(i, tuple(3 + (7 * i + j) % 390 for j in range(2 + i % 5)), first_seed + i) for i in range(REQUESTS)]


def logprobs_of(policy: torch.nn.Module, prompt: Sequence[int], completion: Completion) -> list[float]:
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logprobs_TV = policy(ids).logits[0].log_softmax(-1)
    start = len(prompt)
    return [float(logprobs_TV[start - 1 + t, token]) for t, token in enumerate(completion.token_ids)]


def sample_with_a_push_amid(running: Running) -> dict[int, tuple[Completion, ...]]:
    """All requests, sampled while new weights come; request i goes to replica i % 3."""
    stream, short = running.group.stream(SAMPLING), running.group.stream(SamplingParams(1, 4))
    stream.submit(requests())
    short.submit(requests()[:3])
    while short.unfinished:
        short.finished()
    # Every replica has begun; most completions are somewhere in their middle.
    running.push()
    found: Finished = []
    while stream.unfinished:
        found += stream.finished()
    assert sorted(index for index, _ in found) == list(range(REQUESTS)), "each group once"
    return dict(found)


def test_tokens_before_and_after_a_push_are_those_of_the_version_they_are_stamped_with(running: Running) -> None:
    groups = sample_with_a_push_amid(running)
    old, new = running.policy(running.version - 1), running.policy(running.version)
    for kind in (IN_ACTOR, OWN_PROCESS):
        mixed = 0
        for index, prompt in enumerate(requests()):
            if index % 3 != kind:
                continue
            for one in groups[index]:
                by_version = {
                    running.version - 1: logprobs_of(old, prompt.token_ids, one),
                    running.version: logprobs_of(new, prompt.token_ids, one),
                }
                mixed += len(one.spans) == 2
                for span in one.spans:
                    expected = by_version[span.policy_version][span.start : span.stop]
                    assert one.logprobs[span.start : span.stop] == pytest.approx(expected, abs=1e-4), (kind, one.spans)
        assert mixed >= 10, f"replica {kind} must have been amid {mixed} completions"


def test_restarted_completions_are_what_the_new_weights_sample_from_scratch(running: Running) -> None:
    groups = sample_with_a_push_amid(running)
    stream = running.group.stream(SAMPLING)
    stream.submit(requests())
    again: Finished = []
    while stream.unfinished:
        again += stream.finished()
    scratch = dict(again)
    restarted = 0
    for index in range(RESTARTING, REQUESTS, 3):
        assert len({span for one in groups[index] for span in one.spans if len(one.spans) > 1}) == 0, "no mix"
        versions = {one.spans[0].policy_version for one in groups[index]}
        if versions == {running.version}:
            restarted += 1
            assert [one.token_ids for one in groups[index]] == [one.token_ids for one in scratch[index]]
        else:
            assert versions == {running.version - 1}, "a group begins again as a whole, or had finished"
    assert restarted >= 5


def test_killed_replicas_are_restarted_with_the_present_weights_and_their_requests_replayed(running: Running) -> None:
    """One actor is killed, and of the other only the process that its engine runs in."""
    group = running.group
    group.on_restart(lambda index: _proven(running, index))
    stream = group.stream(SAMPLING)
    stream.submit(requests(500))
    found: Finished = []
    in_actor, own_process = (group._replicas[kind]._processes for kind in (IN_ACTOR, OWN_PROCESS))
    assert in_actor and own_process
    os.kill(in_actor.created[0][0], signal.SIGKILL)
    (engine,) = [pid for pid, _ in own_process.created if "EngineCore" in " ".join(psutil.Process(pid).cmdline())]
    os.kill(engine, signal.SIGKILL)
    while stream.unfinished:
        found += stream.finished()
    assert sorted(index for index, _ in found) == list(range(REQUESTS)), "no group lost or twice"
    while len(running.told) < 2:
        group._hear(1.0)
    assert {line.split(";")[0].split(": ")[1] for line in running.told} == {
        "its process died",
        "the process of its engine died",
    }, running.told
    assert {span.policy_version for _, ones in found for one in ones for span in one.spans} == {running.version}
    stream.submit(requests(900))
    assert all(replica.work for replica in group._replicas), "those that were restarted take part again"
    policy = running.policy(running.version)
    while stream.unfinished:
        for index, ones in stream.finished():
            for one in ones:
                expected = logprobs_of(policy, requests()[index].token_ids, one)
                assert one.logprobs == pytest.approx(expected, abs=1e-4)


def _proven(running: Running, index: int) -> None:
    running.group.only(index).load_weights(running.weights(), running.version)
