"""LoRA under DeepSpeed and into vLLM: only adapters are trained, and every generator samples from what they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from setups_for_tests import (
    CPU,
    generator_setup,
    learner_setups,
    random_batch,
    random_sequences,
    started_learners,
    without_speed,
)
from transformers import AutoModelForCausalLM

from grpo.algorithm.losses import clipped_policy_loss
from grpo.algorithm.rescoring import Source, pack_for_scoring, unpack
from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.learner_group import LearnerGroup
from grpo.config import Dtype, LoraConfig
from grpo.policy.adapters import add_adapters
from grpo.weights.sync import TOLERANCES, WeightSync

pytestmark = [pytest.mark.slow, pytest.mark.long]
peft = pytest.importorskip("peft")

LORA = LoraConfig(rank=4, alpha=8)
# Ranks, ZeRO stage and dtype. The ZeRO-1 one also recomputes activations.
SHAPES: dict[str, tuple[int, int, Dtype]] = {
    "one rank, ZeRO-1": (1, 1, "float32"),
    "two ranks, ZeRO-2": (2, 2, "float32"),
    "two ranks, ZeRO-3": (2, 3, "float32"),
    "one rank, ZeRO-2, bfloat16": (1, 2, "bfloat16"),
}
FLOAT32 = [name for name in SHAPES if not name.endswith("bfloat16")]
PROBE = [list(sequence.token_ids) for sequence in random_sequences(3, seed=9)]


@pytest.fixture(scope="module")
def learners(ray_running: None, tied_policy: str) -> Iterator[dict[str, LearnerGroup]]:
    setups = {
        name: learner_setups(
            tied_policy,
            ranks=ranks,
            zero_stage=stage,
            dtype=dtype,
            kl_coefficient=0.1,
            gradient_checkpointing=stage == 1,
            lora=LORA,
        )
        for name, (ranks, stage, dtype) in SHAPES.items()
    }
    with started_learners(setups) as started:
        yield started


def plain_torch_step(path: str) -> tuple[float, float, int]:
    """Loss, gradient norm and parameters of the adapters, without packing or DeepSpeed."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    add_adapters(model, LORA, seed=0)
    sequences = random_sequences(24)
    total = torch.zeros(())
    for sequence in sequences:
        ids = torch.tensor(sequence.token_ids)
        logprobs = torch.log_softmax(model(ids[None]).logits[0, :-1], dim=-1).gather(1, ids[1:, None])[:, 0]
        old = torch.tensor(sequence.old_logprobs)
        advantage = torch.full_like(old, sequence.advantage)
        sampled = logprobs[sequence.prompt_length - 1 :]
        total = total + clipped_policy_loss(sampled, old, advantage, clip_low=0.2, clip_high=0.28).loss_T.sum()
    loss = total / sum(sequence.trained_tokens for sequence in sequences)
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()
    return float(loss.detach()), float(norm), sum(p.numel() for p in trained)


def scored(learner: LearnerGroup, source: Source) -> torch.Tensor:
    packed = pack_for_scoring(random_sequences(5, seed=5), learner.ranks, 128)
    found = unpack(packed, learner.logprobs(packed, source))
    return torch.tensor([value for number in range(5) for value in found[number]])


def optimizer_numbers(state: Path) -> int:
    """Elements of Adam's first moment over all ranks, padding included."""

    def moments(found: Any) -> Iterator[torch.Tensor]:
        values = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ()
        if isinstance(found, dict) and "exp_avg" in found:
            yield found["exp_avg"]
            return
        for value in values:
            yield from moments(value)

    files = list(state.glob("*optim_states.pt"))
    assert files
    # Our own file, of a moment ago.
    parts = [torch.load(file, weights_only=False, map_location="cpu") for file in files]
    return sum(moment.numel() for part in parts for moment in moments(part))


def test_the_first_step_is_that_of_plain_torch_and_moves_only_adapted_layers(
    learners: dict[str, LearnerGroup], tied_policy: str, tmp_path: Path
) -> None:
    loss, norm, _ = plain_torch_step(tied_policy)
    start = load_file(Path(tied_policy) / "model.safetensors")
    for index, (name, learner) in enumerate(learners.items()):
        loose = 1e-2 if name.endswith("bfloat16") else 1e-4
        before = scored(learner, "policy")
        assert torch.equal(scored(learner, "reference"), before), name
        found = learner.step(random_batch(learner.ranks))
        assert found["loss"] == pytest.approx(loss, rel=loose), name
        assert found["gradient_norm"] == pytest.approx(norm, rel=loose), name
        assert found["kl_reference"] == pytest.approx(0.0, abs=1e-6), name
        assert float((scored(learner, "policy") - before).abs().mean()) > 1e-3, name
        # Without its adapters the policy is what it was.
        assert torch.equal(scored(learner, "reference"), before), name
        learner.export(str(tmp_path / str(index)))
        policy = load_file(tmp_path / str(index) / "model.safetensors")
        # A tied output head is written out beside the embedding.
        assert policy.keys() == start.keys() | {"lm_head.weight"}
        moved = {key for key in start if not torch.equal(start[key].to(policy[key].dtype), policy[key])}
        assert moved == {key for key in start if key.endswith("_proj.weight")}, name


def test_ranks_and_stages_agree_on_further_steps(learners: dict[str, LearnerGroup]) -> None:
    for seed in (1, 2):
        metrics = {name: learners[name].step(random_batch(learners[name].ranks, seed=seed)) for name in FLOAT32}
        for name, found in metrics.items():
            assert found["kl_reference"] > 1e-6, name
            assert found["loss"] == pytest.approx(metrics[FLOAT32[0]]["loss"], rel=1e-3, abs=1e-5), name
            assert found["gradient_norm"] == pytest.approx(metrics[FLOAT32[0]]["gradient_norm"], rel=1e-3), name


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_checkpoint_is_of_adapters_and_resumes_to_the_bit(
    learners: dict[str, LearnerGroup], name: str, tied_policy: str, tmp_path: Path
) -> None:
    learner = learners[name]
    learner.step(random_batch(learner.ranks, seed=6))
    learner.save(str(tmp_path))
    policy, reference = scored(learner, "policy"), scored(learner, "reference")
    following = [without_speed(learner.step(random_batch(learner.ranks, seed=seed))) for seed in (7, 8)]
    learner.load(str(tmp_path))
    assert torch.equal(scored(learner, "policy"), policy) and torch.equal(scored(learner, "reference"), reference)
    again = [without_speed(learner.step(random_batch(learner.ranks, seed=seed))) for seed in (7, 8)]
    assert again == following
    _, _, trained = plain_torch_step(tied_policy)
    assert trained <= optimizer_numbers(tmp_path / "learner" / "state") < trained + 1000
    # Its two exports say the same: the merged policy, and the adapters on top of the starting policy.
    dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=dtype)
    start = AutoModelForCausalLM.from_pretrained(tied_policy, dtype=dtype)
    read = peft.PeftModel.from_pretrained(start, str(tmp_path / "adapter"))
    ids = torch.tensor(PROBE[:1])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, read(ids).logits, atol=0.05 if dtype == torch.bfloat16 else 1e-5)


def test_a_new_learner_goes_on_from_a_checkpoint_to_the_bit(
    learners: dict[str, LearnerGroup], tied_policy: str, tmp_path: Path
) -> None:
    """As a resumed run does it: started with the checkpoint's policy, in which adapters are merged."""
    learner = learners["two ranks, ZeRO-3"]
    learner.step(random_batch(2, seed=6))
    learner.save(str(tmp_path))
    scores = scored(learner, "policy"), scored(learner, "reference")
    following = [without_speed(learner.step(random_batch(2, seed=seed))) for seed in (7, 8)]
    setups = learner_setups(tied_policy, ranks=2, zero_stage=3, kl_coefficient=0.1, lora=LORA)
    resumed = [dataclasses.replace(setup, policy_path=str(tmp_path / "policy")) for setup in setups]
    with Cluster(CPU, Plan(learner_ranks=2, learner_threads=1)) as cluster:
        other = cluster.start_learner(resumed)()
        other.load(str(tmp_path))
        assert torch.equal(scored(other, "policy"), scores[0])
        assert torch.equal(scored(other, "reference"), scores[1])
        assert [without_speed(other.step(random_batch(2, seed=seed))) for seed in (7, 8)] == following


def test_every_rank_draws_its_own_dropout_again(ray_running: None, tied_policy: str, tmp_path: Path) -> None:
    setups = learner_setups(tied_policy, ranks=2, lora=LORA.model_copy(update={"dropout": 0.3}))
    with Cluster(CPU, Plan(learner_ranks=2, learner_threads=1)) as cluster:
        learner = cluster.start_learner(setups)()
        # The ranks' shares differ in size, and so do their states from here on.
        learner.step(random_batch(2, seed=6))
        learner.save(str(tmp_path))
        following = without_speed(learner.step(random_batch(2, seed=7)))
        learner.load(str(tmp_path))
        assert without_speed(learner.step(random_batch(2, seed=7))) == following


def test_a_checkpoint_on_other_weights_or_without_adapters_is_refused(
    learners: dict[str, LearnerGroup], untied_policy: str, tied_policy: str, tmp_path: Path
) -> None:
    learner = learners["one rank, ZeRO-1"]
    learner.save(str(tmp_path / "lora"))
    changed = AutoModelForCausalLM.from_pretrained(tied_policy)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    changed.save_pretrained(tmp_path / "changed")
    [setup] = learner_setups(tied_policy, zero_stage=1, lora=LORA)
    others = {
        "other": dataclasses.replace(setup, reference_path=str(tmp_path / "changed")),
        "full": learner_setups(tied_policy, zero_stage=1)[0],
    }
    for name, message in (("other", "trained on other weights"), ("full", "written with learner.lora")):
        with Cluster(CPU, Plan(learner_ranks=1, learner_threads=1)) as cluster:
            started = cluster.start_learner([others[name]])()
            with pytest.raises(ValueError, match=message):
                started.load(str(tmp_path / "lora"))


@pytest.mark.parametrize("stage", [2, 3])
def test_pushed_adapters_are_what_the_generator_computes(ray_running: None, tied_policy: str, stage: int) -> None:
    ranks = stage - 1
    with Cluster(CPU, Plan(ranks, 1, 1, 1, 1)) as cluster:
        joining = cluster.start_learner(learner_setups(tied_policy, ranks=ranks, zero_stage=stage, lora=LORA))
        generators = cluster.start_generators([generator_setup(tied_policy)], 120, 120)()
        learner = joining()
        sync = WeightSync(learner, generators, 1 << 14, TOLERANCES["float32"])
        assert sync.push(0, PROBE) < 1e-5
        for version in (1, 2):
            learner.step(random_batch(ranks, seed=version))
            assert min(sync.compare(PROBE)) > 10 * TOLERANCES["float32"], (
                "the probe must see a step that was not pushed"
            )
            assert sync.push(version, PROBE) < 1e-5
