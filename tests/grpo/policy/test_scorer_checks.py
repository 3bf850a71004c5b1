"""Which reward models a run refuses before it starts, each with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_policy import TINY, make_tiny_policy
from transformers import AutoConfig, AutoTokenizer

from grpo.cluster.reward_models.actor import batches
from grpo.cluster.reward_models.opening import options_of
from grpo.policy.new import make_policy
from grpo.policy.score_scale import ScoreScale
from grpo.policy.scores import check_scorer, load_scorer
from rewards.build import VerifierSpec


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def model(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    load_scorer(str(policy), "float32").save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


def check(path: Path, policy: Path, longest: int = 100) -> None:
    check_scorer(str(path), "verifier 'm'", AutoTokenizer.from_pretrained(policy), longest)


def test_a_model_of_the_same_tokenizer_is_taken(model: Path, policy: Path) -> None:
    check(model, policy)
    with pytest.raises(ValueError, match=r"reads at most 128 tokens, and a prompt with its completion may have 129"):
        check(model, policy, 129)


def test_a_folder_without_head_or_without_anything_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'m': .* is a Qwen3ForCausalLM without a score head; train .* `grpo reward`"):
        check(policy, policy)
    with pytest.raises(ValueError, match="neither a folder with a reward model"):
        check(tmp_path, policy)


def test_several_labels_are_refused(model: Path, policy: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(model, num_labels=3).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 3 labels, and a reward model has a single score"):
        check(tmp_path, policy)


def test_another_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    make_policy(TINY.model_copy(update={"alphabet": "abc0"}), [], tmp_path / "other", 0)
    with pytest.raises(ValueError, match="trained with another tokenizer than the policy's"):
        check(model, tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "missing 1 required positional argument: 'path'"),
        ({"path": "x", "normalize": True}, "unexpected keyword argument 'normalize'"),
        ({"path": "x", "device": "tpu"}, "device must be cpu or gpu, got 'tpu'"),
        ({"path": "x", "threads": 0}, "threads needs a number above 0, got 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        options_of(VerifierSpec("m", "reward_model", options))


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reward_model.json").write_text('{"mean": "high"}')
    with pytest.raises(ValueError, match="needs the numbers mean, deviation and answers"):
        ScoreScale.read(tmp_path)


def test_batches_hold_all_sequences_within_their_limit() -> None:
    lengths = [5, 30, 2, 8, 8, 90, 3]
    parts = batches(lengths, 24)
    assert sorted(at for part in parts for at in part) == list(range(7))
    assert all(len(part) == 1 or max(lengths[at] for at in part) * len(part) <= 24 for part in parts)
    assert parts[0] == [2, 6, 0] and len(parts) == 4
