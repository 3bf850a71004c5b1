"""A share of the layers is computed again in the backward pass, and the gradient stays the same to the bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from setups_for_tests import learner_setups, random_sequences
from tiny_policy import TINY, make_tiny_policy, one_by_one
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo.algorithm.packing import pack
from grpo.config import LearnerConfig
from grpo.learner.deepspeed_setup import load_policy
from grpo.policy.attention import PackedLayout, VarlenLayout
from grpo.policy.logprobs import PolicyLogprobs
from grpo.policy.recompute import recompute, recomputed_layers

LAYERS = 4
Layout = type[PackedLayout | VarlenLayout]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"), TINY.model_copy(update={"layers": LAYERS}))


def trained(folder: Path, share: float, layout: Layout) -> tuple[list[int], dict[str, Tensor]]:
    """How often each layer is computed in a forward and a backward pass, and the gradients."""
    (setup,) = learner_setups(str(folder), gradient_checkpointing=share)
    policy = PolicyLogprobs(load_policy(setup, str(folder), None), layout=layout).train()
    calls = [0] * LAYERS
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]

    def count(index: int) -> Any:
        def called(*_: object) -> None:
            calls[index] += 1

        return called

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(count(index))
    (logprobs_T,) = policy(pack(random_sequences(6, group_size=3)), 0.7)
    (logprobs_T * torch.linspace(-1, 1, len(logprobs_T))).sum().backward()
    return calls, {name: one.grad for name, one in policy.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("layout", [PackedLayout, VarlenLayout])
def test_gradients_do_not_depend_on_the_share(folder: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.policy.attention.varlen_attn", one_by_one)
    calls, expected = trained(folder, 0.0, layout)
    assert calls == [1, 1, 1, 1] and len(expected) > 4 * LAYERS
    for share, computed in ((0.5, [1, 2, 1, 2]), (0.25, [1, 1, 1, 2]), (1.0, [2, 2, 2, 2]), (0.01, [1, 1, 1, 2])):
        calls, found = trained(folder, share, layout)
        assert calls == computed
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], one) for name, one in expected.items())


@pytest.mark.parametrize("layers", [1, 7, 28])
def test_recomputed_layers_are_spread_evenly(layers: int) -> None:
    for count in range(layers + 1):
        chosen = recomputed_layers(layers, count / layers)
        assert len(chosen) == layers and sum(chosen) == count
        places = [-1, *(layer for layer, again in enumerate(chosen) if again)]
        gaps = {later - place for place, later in itertools.pairwise(places)}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_true_and_false_stay_all_and_none() -> None:
    shares = {value: LearnerConfig(gradient_checkpointing=value).gradient_checkpointing for value in (True, False)}
    assert shares == {True: 1.0, False: 0.0} and LearnerConfig().gradient_checkpointing == 0
    for wrong in (-0.1, 1.1, "half"):
        with pytest.raises(ValidationError, match="gradient_checkpointing"):
            LearnerConfig.model_validate({"gradient_checkpointing": wrong})


def test_a_policy_whose_layers_cannot_be_chosen_is_refused() -> None:
    class Whole(torch.nn.Module):
        def gradient_checkpointing_enable(self, settings: dict[str, bool]) -> None:
            assert settings == {"use_reentrant": False}

    model: PreTrainedModel = Whole()  # type: ignore[assignment]
    recompute(model, 1.0)
    with pytest.raises(ValueError, match=r"gradient_checkpointing=0\.5 .* Whole .* use 0 or 1"):
        recompute(model, 0.5)
