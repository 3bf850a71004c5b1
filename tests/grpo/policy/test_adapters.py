"""LoRA inside a policy: what is trained, what is exported, and what switching it off gives back."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_policy import load_tiny_model, make_tiny_policy
from transformers import PreTrainedModel

from grpo.algorithm.packing import TrainingSequence, pack
from grpo.config import LearnerConfig, LoraConfig, NewPolicyConfig, PolicyConfig
from grpo.planning.memory import learner_memory
from grpo.planning.policy_shape import shape_of
from grpo.policy.adapters import (
    adapter_tensors,
    adapters_off,
    add_adapters,
    check_adapter,
    policy_tensors,
    require_peft,
    save_adapter,
    trained_parameters,
)
from grpo.policy.logprobs import PolicyLogprobs

SMALL = LoraConfig(rank=3, alpha=5.0)
IDS = torch.tensor([[3, 9, 4, 12, 7, 7, 5]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_policy(tmp_path / "policy")


def adapted(folder: Path, lora: LoraConfig = SMALL) -> PreTrainedModel:
    """A tiny policy with adapters that do something, which needs peft."""
    pytest.importorskip("peft")
    model = load_tiny_model(folder, "eager")
    add_adapters(model, lora, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter_tensors(model):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def test_a_policy_with_new_adapters_computes_what_it_did(folder: Path) -> None:
    pytest.importorskip("peft")
    model = load_tiny_model(folder, "eager")
    before = model(IDS).logits
    random = torch.get_rng_state()
    add_adapters(model, SMALL, seed=0)
    assert torch.equal(model(IDS).logits, before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), ("layers.1.mlp.up_proj",)])
def test_only_adapters_of_the_targets_have_a_gradient(folder: Path, targets: str | tuple[str, ...]) -> None:
    lora = LoraConfig.model_validate({"rank": 3, "targets": targets})
    expected = trained_parameters(load_tiny_model(folder, "eager"), lora)
    model = adapted(folder, lora)
    sequence = TrainingSequence(tuple(IDS[0].tolist()), 2, (-1.0,) * 5, 1.0)
    packed_model = load_tiny_model(folder)
    add_adapters(packed_model, lora, seed=0)
    for with_gradient in (model, packed_model):
        found = {name for name, parameter in with_gradient.named_parameters() if parameter.requires_grad}
        assert found and all(".lora_" in name for name in found)
        assert sum(p.numel() for p in with_gradient.parameters() if p.requires_grad) == expected
        wanted = ("_proj",) if targets == "all-linear" else tuple(targets)
        assert {name.split(".lora_")[0] for name in found} == {
            name.removesuffix(".weight")
            for name, _ in load_tiny_model(folder, "eager").named_parameters()
            if name.removesuffix(".weight").endswith(wanted)
        }
    (logprobs_T,) = PolicyLogprobs(packed_model)(pack([sequence]), 1.0)
    logprobs_T.sum().backward()
    for name, parameter in packed_model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name
        # A's gradient passes through B, which is still zero.
        assert ".lora_B." not in name or bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_policy_is_the_adapted_one_under_the_names_of_the_plain_one(tmp_path: Path, tied: bool) -> None:
    new = NewPolicyConfig(
        hidden_size=16,
        layers=2,
        heads=4,
        key_value_heads=2,
        intermediate_size=24,
        max_position=128,
        tie_embeddings=tied,
    )
    folder = make_tiny_policy(tmp_path / "policy", new)
    plain, model = load_tiny_model(folder, "eager"), adapted(folder)
    names = [name for name, _ in plain.named_parameters(remove_duplicate=False)]
    merged = {one.name: one.merged() for one in policy_tensors(model)}
    assert list(merged) == names
    assert [one.name for one in policy_tensors(plain)] == names
    kept = {name: parameter.clone() for name, parameter in model.named_parameters()}
    changed = {name for name, tensor in plain.named_parameters() if not torch.equal(tensor, merged[name])}
    assert changed == {name for name in names if name.endswith("_proj.weight")}
    expected = model(IDS).logits
    assert float((plain(IDS).logits - expected).detach().abs().max()) > 0.1
    plain.load_state_dict(merged)
    # The product is summed in float32.
    assert torch.allclose(plain(IDS).logits, expected, atol=1e-3, rtol=1e-4)
    assert all(torch.equal(parameter, kept[name]) for name, parameter in model.named_parameters())


def test_without_adapters_it_is_the_starting_policy_and_with_them_again_it_trains(folder: Path) -> None:
    model = adapted(folder)
    before, start = model(IDS).logits, load_tiny_model(folder, "eager")(IDS).logits
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.raises(KeyError), adapters_off(model):
        assert torch.equal(model(IDS).logits, start)
        raise KeyError("what fails inside must not leave them off")
    assert torch.equal(model(IDS).logits, before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_peft_reads_what_is_written(folder: Path, tmp_path: Path) -> None:
    model = adapted(folder)
    peft = pytest.importorskip("peft")
    tensors = {name: parameter.detach().clone() for name, parameter in adapter_tensors(model)}
    save_adapter(model, tensors, str(folder), tmp_path / "adapter")
    read = peft.PeftModel.from_pretrained(load_tiny_model(folder, "eager"), str(tmp_path / "adapter"))
    assert torch.equal(read(IDS).logits, model(IDS).logits)
    check_adapter(model, tmp_path / "adapter")
    others = {
        "rank": LoraConfig(rank=4, alpha=5),
        "alpha": LoraConfig(rank=3),
        "targets": LoraConfig(rank=3, alpha=5, targets=("q_proj",)),
    }
    for key, lora in others.items():
        with pytest.raises(ValueError, match=rf"have {key} .*resume with the learner\.lora"):
            check_adapter(adapted(folder, lora), tmp_path / "adapter")


def test_the_plan_counts_what_is_trained(folder: Path) -> None:
    full, lora = LearnerConfig(ranks=2), LearnerConfig(ranks=2, lora=SMALL)
    policy = PolicyConfig(path=str(folder), dtype="bfloat16")
    shapes = [shape_of(policy, learner) for learner in (full, lora)]
    assert shapes[0] is not None and shapes[1] is not None
    # Two layers, rank 3: into and out of q, k, v, o, gate, up and down.
    trained = 2 * 3 * ((16 + 16) + 2 * (16 + 8) + (16 + 16) + 3 * (16 + 24))
    assert (shapes[0].trained, shapes[1].trained) == (shapes[0].parameters, trained)
    before, after = (
        learner_memory(shape, policy, learner, None).device for shape, learner in zip(shapes, (full, lora), strict=True)
    )
    assert after["weights"] == before["weights"] + 2 * trained
    assert after["gradients"] == 4 * trained / 2
    assert after["optimizer (Adam, float32 weights)"] == 12 * trained / 2
    # The output head is frozen.
    assert "gradient of the output head" in before and "gradient of the output head" not in after


def test_unknown_targets_are_named_with_those_there_are(folder: Path) -> None:
    lora = LoraConfig(targets=("q_proj", "query"))
    with pytest.raises(ValueError, match=r"is called query; choose from down_proj, .*v_proj, or all-linear"):
        trained_parameters(load_tiny_model(folder, "eager"), lora)


def test_targets_that_cannot_be_merged_are_refused(folder: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"called lm_head; choose from"):
        add_adapters(load_tiny_model(folder, "eager"), LoraConfig(targets=("q_proj", "lm_head")), seed=0)


def test_a_missing_library_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_peft(LearnerConfig())
    with pytest.raises(ValueError, match=r"pip install 'verigrpo\[lora\]'"):
        require_peft(LearnerConfig(lora=LoraConfig()))
