"""vLLM as a generator, beside a learner: what it samples, what it says of it, and whether a push arrives."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import safetensors.torch
import torch
from setups_for_tests import CPU, generator_setup, learner_setups, random_batch, random_sequences
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.algorithm.minibatches import batch
from grpo.algorithm.packing import TrainingSequence
from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_group import LearnerGroup
from grpo.types import Completion, Prompt, SamplingParams
from grpo.weights.buckets import further_names_in
from grpo.weights.sync import TOLERANCES, WeightMismatch, WeightSync

pytestmark = pytest.mark.slow

PROBE = [list(sequence.token_ids) for sequence in random_sequences(3, seed=9)]


@dataclass(frozen=True)
class Pair:
    """A learner with its generators, and the policy that both started from."""

    learner: LearnerGroup
    generators: GeneratorGroup
    path: str
    temperature: float

    @property
    def sync(self) -> WeightSync:
        return WeightSync(self.learner, self.generators, 1 << 14, TOLERANCES["float32"])


@pytest.fixture(scope="module")
def pairs(ray_running: None, tied_policy: str, untied_policy: str) -> Iterator[dict[str, Pair]]:
    """`tied`: ZeRO-2, two replicas in their actors. `untied`: ZeRO-3 on two ranks, an engine in its own process."""
    with contextlib.ExitStack() as opened:
        tied = opened.enter_context(Cluster(CPU, Plan(1, 1, 2, 1, 1)))
        untied = opened.enter_context(Cluster(CPU, Plan(2, 1, 1, 1, 1)))
        joins = [
            tied.start_learner(learner_setups(tied_policy, zero_stage=2)),
            # Longer than a block of vLLM's on a CPU, so that prefixes are kept.
            tied.start_generators(
                [replace(generator_setup(tied_policy, replica=index), max_sequence_tokens=192) for index in range(2)],
                120,
                120,
            ),
            untied.start_learner(
                learner_setups(untied_policy, ranks=2, zero_stage=3, temperature=0.7, kl_coefficient=0.1)
            ),
            untied.start_generators([generator_setup(untied_policy, engine="own_process", temperature=0.7)], 120, 120),
        ]
        started: list[Any] = [join() for join in joins]
        yield {
            "tied": Pair(started[0], started[1], tied_policy, 1.0),
            "untied": Pair(started[2], started[3], untied_policy, 0.7),
        }


def prompts(path: str, count: int) -> list[Prompt]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [f"{index}+{index % 7}=?" for index in range(count)]
    return [Prompt(f"p{i}", text, tuple(tokenizer(text)["input_ids"]), None, {}) for i, text in enumerate(texts)]


def sample(
    pair: Pair, asked: Sequence[Prompt], seeds: Sequence[int], *, samples: int = 4, temperature: float | None = None
) -> dict[int, tuple[Completion, ...]]:
    chosen = pair.temperature if temperature is None else temperature
    return dict(pair.generators.generate(asked, SamplingParams(samples, 24, chosen), seeds))


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_groups_are_whole_and_their_logprobs_are_the_policys(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    pair.sync.push(3, PROBE)
    asked = prompts(pair.path, 5)
    groups = sample(pair, asked, seeds=range(5))
    assert sorted(groups) == [0, 1, 2, 3, 4]
    scored = pair.learner.score(
        [[*asked[index].token_ids, *one.token_ids] for index in range(5) for one in groups[index]]
    )()
    assert pair.temperature != 1.0 or len(scored) == 20
    for row, (index, one) in zip(scored, [(i, c) for i in range(5) for c in groups[i]], strict=True):
        assert one.spans[0].policy_version == 3
        assert (one.finish_reason == "length") == (len(one.token_ids) == 24 and one.token_ids[-1] != 1)
        assert "<end>" not in one.text
        if pair.temperature == 1.0:
            assert row[len(asked[index].token_ids) - 1 :] == pytest.approx(one.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_fresh_samples_have_ratio_one(pairs: dict[str, Pair], name: str) -> None:
    """On-policy, before any update, the learner must give what the generator gave, temperature included."""
    pair = pairs[name]
    pair.sync.push(4, PROBE)
    asked = prompts(pair.path, 6)
    groups = sample(pair, asked, seeds=range(6))
    sequences = [
        TrainingSequence((*asked[i].token_ids, *one.token_ids), len(asked[i].token_ids), one.logprobs, 1.0)
        for i, completions in groups.items()
        for one in completions
    ]
    trained = sum(one.trained_tokens for one in sequences)
    packed = batch(sequences, denominator=float(trained), ranks=pair.learner.ranks, microbatch_tokens=256)
    metrics = pair.learner.step(packed)
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert metrics["mismatch_kl"] < 1e-6
    assert metrics["loss"] == pytest.approx(-1.0, abs=1e-3)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_profile_has_the_operators_of_the_process_that_computes(
    pairs: dict[str, Pair], name: str, tmp_path: Path
) -> None:
    pair = pairs[name]
    pair.generators.start_profile()
    sample(pair, prompts(pair.path, 4), seeds=range(4))
    profiles = pair.generators.stop_profile(str(tmp_path))
    names = {"tied": ["generator_0.json.gz", "generator_1.json.gz"], "untied": ["generator_0.json.gz"]}[name]
    assert [profile.trace for profile in profiles] == [tmp_path / name for name in names]
    for index, profile in enumerate(profiles):
        assert str(profile.actor) == f"generator {index}" and not profile.on_gpu
        assert 0 < profile.operators[0].self_s < profile.operators_s
        assert [one.self_s for one in profile.operators] == sorted(
            (one.self_s for one in profile.operators), reverse=True
        )
        with gzip.open(profile.trace, "rt") as trace:
            events = json.load(trace)["traceEvents"]
        # 24 tokens of each of the two layers, whose matrices are multiplied in the model's process.
        products = [one for one in events if "mm" in str(one.get("name")) or "linear" in str(one.get("name"))]
        assert len(products) > 24 * 2
    # The generator can be profiled again.
    pair.generators.start_profile()
    assert len(pair.generators.stop_profile(str(tmp_path / "again"))) == len(names)


def test_prefixes_that_older_weights_computed_are_not_used_again(pairs: dict[str, Pair]) -> None:
    pair = pairs["tied"]
    # One for each replica, with a first block that both share.
    ids = [tuple(3 + (token * token + last * (token == 149)) % 20 for token in range(150)) for last in range(2)]
    asked = [Prompt(f"long {n}", "", one, None, {}) for n, one in enumerate(ids)]
    for version in (5, 6):
        pair.sync.push(version, PROBE)
        groups = sample(pair, asked, seeds=[7, 8])
        sampled = [(ids[index], one) for index in range(2) for one in groups[index]]
        scored = pair.learner.score([[*prompt, *one.token_ids] for prompt, one in sampled])()
        for row, (prompt, one) in zip(scored, sampled, strict=True):
            assert one.spans[0].policy_version == version
            assert row[len(prompt) - 1 :] == pytest.approx(one.logprobs, abs=1e-4)
        pair.learner.step(random_batch(1, seed=version))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 0.999}])
def test_the_likeliest_token_alone_is_the_greedy_choice(pairs: dict[str, Pair], narrow: dict[str, Any]) -> None:
    pair = pairs["tied"]
    asked, seeds = prompts(pair.path, 4), range(4)
    found = dict(pair.generators.generate(asked, SamplingParams(4, 24, 1.0, **narrow), seeds))
    greedy = sample(pair, asked, seeds, samples=1, temperature=0.0)
    whole = sample(pair, asked, seeds)
    for index, completions in found.items():
        assert {one.token_ids for one in completions} == {greedy[index][0].token_ids}
        assert len({one.token_ids for one in whole[index]}) > 1


def test_a_seed_fixes_a_completion_whatever_runs_beside_it(pairs: dict[str, Pair]) -> None:
    pair = pairs["tied"]
    asked = prompts(pair.path, 6)
    together = sample(pair, asked, seeds=[10, 11, 12, 13, 14, 15])
    alone = sample(pair, asked[2:3], seeds=[12])
    assert [one.token_ids for one in alone[0]] == [one.token_ids for one in together[2]]
    other = sample(pair, asked[2:3], seeds=[99])
    assert [one.token_ids for one in other[0]] != [one.token_ids for one in together[2]]
    assert len({one.token_ids for one in together[2]}) > 1, "the samples of a group must differ"


def test_greedy_is_transformers_greedy(pairs: dict[str, Pair], tmp_path: Any) -> None:
    pair = pairs["tied"]
    pair.sync.push(5, PROBE)
    pair.learner.export(str(tmp_path / "policy"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    asked = prompts(pair.path, 3)
    groups = sample(pair, asked, seeds=[0, 0, 0], samples=1, temperature=0.0)
    for index, prompt in enumerate(asked):
        ids = torch.tensor([prompt.token_ids])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert groups[index][0].token_ids == tuple(expected[0, len(prompt.token_ids) :].tolist())


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_push_arrives_and_its_lack_is_seen(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    pair.sync.push(6, PROBE)
    metrics = pair.learner.step(random_batch(pair.learner.ranks, seed=3))
    # Earlier steps have led the policy away from the frozen reference, where there is one.
    assert metrics.get("kl_reference", 1.0) > 1e-4
    assert ("kl_reference" in metrics) == (name == "untied")
    assert min(pair.sync.compare(PROBE)) > 10 * TOLERANCES["float32"], "the probe must see a step that was not pushed"
    assert pair.sync.push(7, PROBE) < 1e-5


@dataclass(frozen=True)
class Lossy:
    """A learner whose export leaves a name of a tensor out, or spoils a tensor on its way."""

    learner: LearnerGroup
    dropped: str = ""
    spoiled: list[str] | None = None

    @property
    def scores_aside(self) -> bool:
        return self.learner.scores_aside

    def tensor_names(self) -> list[str]:
        return self.learner.tensor_names()

    def score(self, sequences: Sequence[Sequence[int]]) -> Any:
        return self.learner.score(sequences)

    def export_buckets(self, bucket_bytes: int) -> Iterable[Any]:
        for reference in self.learner.export_buckets(bucket_bytes):
            file = bytes(ray.get(reference))
            tensors = safetensors.torch.load(file)
            header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
            further = further_names_in(header.get("__metadata__"))
            for names in further.values():
                if self.dropped in names:
                    names.remove(self.dropped)
            if self.spoiled and self.spoiled[0] in tensors:
                tensors[self.spoiled.pop()].add_(0.1)
            lossy = safetensors.torch.save(tensors, {"further_names": json.dumps(further)})
            yield ray.put(np.frombuffer(lossy, dtype=np.uint8))


def test_the_probe_catches_a_tied_head_that_was_not_sent(pairs: dict[str, Pair]) -> None:
    """vLLM on CPU keeps an output head of its own even where it is tied; PyTorch lists a tied parameter once."""
    pair = pairs["tied"]
    pair.learner.step(random_batch(1, seed=4))
    sync = WeightSync(Lossy(pair.learner, dropped="lm_head.weight"), pair.generators, 1 << 14, TOLERANCES["float32"])
    with pytest.raises(WeightMismatch, match=r"never sent lm_head\.weight$"):
        sync.push(8, PROBE)
    assert pair.sync.push(9, PROBE) < 1e-5


def test_the_probe_names_a_block_that_was_spoiled_on_its_way(pairs: dict[str, Pair]) -> None:
    pair = pairs["tied"]
    spoiled = "model.layers.1.mlp.down_proj.weight"
    sync = WeightSync(Lossy(pair.learner, spoiled=[spoiled]), pair.generators, 1 << 14, TOLERANCES["float32"])
    with pytest.raises(WeightMismatch) as caught:
        sync.push(10, PROBE)
    named = str(caught.value).split(": ")[-1].split(", ")
    assert spoiled in named
    assert all(name.startswith("model.layers.1.mlp.") for name in named), named
