"""In the loop over microbatches, nothing makes the host wait for the device, whatever the objective.

The meta device stands for a GPU: its tensors have no values, so whatever reads one on the host fails or is counted.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
from ranks_without_ray import HostReads
from setups_for_tests import random_sequences
from tiny_policy import make_tiny_policy
from transformers import AutoConfig, AutoModelForCausalLM

from grpo.algorithm.objective import policy_terms, supervised_terms
from grpo.algorithm.packing import Microbatch, pack
from grpo.algorithm.totals import Totals
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.presets import Preset
from grpo.policy.attention import PACKED
from grpo.policy.logprobs import PolicyLogprobs

META = torch.device("meta")
CHOICES: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in get_args(Preset)},
    "sequence_token": {"preset": "gspo", "ratio": "sequence_token"},
    "entropy and a corrected penalty": {
        "entropy_coefficient": 0.1, "kl": "k1", "kl_coefficient": 0.1, "kl_corrected": True
    },
    "truncated sequences": {"proximal": "recomputed", "importance_weight": "sequence"},
    "geometric mask": {"mismatch_mask": "geometric", "mask_low": 0.9, "mask_high": 1.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyLogprobs:
    settings = AutoConfig.from_pretrained(make_tiny_policy(tmp_path_factory.mktemp("policy")))
    with torch.device("meta"):
        return PolicyLogprobs(AutoModelForCausalLM.from_config(settings, attn_implementation=PACKED))


@pytest.fixture(scope="module")
def microbatches() -> list[Microbatch]:
    return [
        pack([dataclasses.replace(one, proximal_logprobs=one.old_logprobs) for one in random_sequences(6, seed, 3)])
        for seed in range(3)
    ]


@pytest.mark.parametrize("choice", list(CHOICES))
def test_no_microbatch_waits_for_the_device(
    policy: PolicyLogprobs, microbatches: list[Microbatch], choice: str
) -> None:
    algorithm = AlgorithmConfig.model_validate(CHOICES[choice])
    totals = Totals(META)
    with HostReads("meta") as reads:
        for microbatch in microbatches:
            batch = microbatch.to(META)
            logprobs_T, entropy_T = policy(batch, 0.7, "gradient" if algorithm.entropy_coefficient else "value")
            terms = policy_terms(algorithm, batch, logprobs_T, entropy_T, logprobs_T.detach())
            terms.loss_sum.backward()
            totals.add(terms)
    assert totals.added.device == META and policy.model.get_output_embeddings().weight.grad is not None
    assert reads.names == []


def test_no_supervised_microbatch_waits_for_the_device(policy: PolicyLogprobs, microbatches: list[Microbatch]) -> None:
    totals = Totals(META)
    with HostReads("meta") as reads:
        for microbatch in microbatches:
            batch = microbatch.to(META)
            totals.add(supervised_terms(batch, *policy(batch, 0.7, "value")))
    assert reads.names == []


def test_what_waits_is_counted() -> None:
    """The counter itself, on operators that would wait on a GPU."""
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    with HostReads("cpu") as reads:
        assert float(values[1]) == 1.0 and len(values[mask]) == 3 and len(mask.nonzero()) == 3
        values.sum().double()
    assert sorted(reads.names) == ["_local_scalar_dense", "index", "nonzero"]
    with HostReads("meta") as reads, pytest.raises(NotImplementedError):
        values.to(META).cpu()
    assert reads.names == ["_to_copy"]


def test_the_histogram_leaves_out_tokens_without_loss() -> None:
    """Whatever their ratio is, 1 or infinite."""
    sequences = random_sequences(3)
    batch = pack([sequences[0], dataclasses.replace(sequences[1], weight=0.0), sequences[2]])
    logprobs_T = batch.old_logprobs_T.clone()
    logprobs_T[batch.weights_T == 0] += torch.linspace(0, 300, int((batch.weights_T == 0).sum()))
    terms = policy_terms(AlgorithmConfig(), batch, logprobs_T.requires_grad_(), torch.zeros_like(logprobs_T), None)
    trained = sequences[0].trained_tokens + sequences[2].trained_tokens
    assert float(terms.log_ratios.sum()) == trained == float(terms.log_ratios[len(terms.log_ratios) // 2])
