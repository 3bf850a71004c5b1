"""Policies made from nothing: a tokenizer that loses nothing, and weights that a seed decides."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_policy import TINY
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from grpo.config import LearnerConfig, NewPolicyConfig, PolicyConfig
from grpo.evaluation.model import open_model
from grpo.planning.policy_shape import shape_of
from grpo.policy.hub import name_of, revision_of
from grpo.policy.logprobs import load_model
from grpo.policy.new import END, PAD, make_policy
from grpo.policy.stored import load_tokenizer, local_or_hub, policy_config

BYTES = TINY.model_copy(update={"tokenizer": "bpe", "vocabulary": 300})
TEXTS = ["the sum of the terms", "which number is it", "thirty four and forty six make eighty together", "123456"] * 5
ALPHABET = NewPolicyConfig().alphabet


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {"characters": tmp_path_factory.mktemp("characters"), "bpe": tmp_path_factory.mktemp("bpe")}
    make_policy(TINY, [], made["characters"], seed=0)
    make_policy(BYTES, TEXTS, made["bpe"], seed=0)
    return made


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, PreTrainedTokenizerBase]:
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


def round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> Any:
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from([*ALPHABET, *TINY.tags]), max_size=30).map("".join))
def test_characters_come_back_one_token_each(tokenizers: dict[str, PreTrainedTokenizerBase], text: str) -> None:
    tokenizer = tokenizers["characters"]
    assert round_trip(tokenizer, text) == text
    without_tags = text
    for tag in TINY.tags:
        without_tags = without_tags.replace(tag, "\0")
    assert len(tokenizer(text)["input_ids"]) == len(without_tags)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_from_byte_pairs(tokenizers: dict[str, PreTrainedTokenizerBase], text: str) -> None:
    if PAD in text or END in text:
        return
    assert round_trip(tokenizers["bpe"], text) == text


def test_byte_pairs_learn_words_and_keep_digits_apart(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["bpe"]
    assert len(tokenizer("the sum")["input_ids"]) < 4
    assert len(tokenizer("123456")["input_ids"]) == 6


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_each_tag_is_one_token_that_text_keeps(tokenizers: dict[str, PreTrainedTokenizerBase], kind: str) -> None:
    tokenizer = tokenizers[kind]
    for tag in TINY.tags:
        (token,) = tokenizer(tag)["input_ids"]
        assert token not in tokenizer.all_special_ids
    text = "1<think>2</think><answer>3</answer>"
    # Verifiers read what is decoded: what the special tokens are skipped from must keep the tags.
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.eos_token == END and tokenizer.pad_token == PAD
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer("1")["input_ids"] == tokenizer("1", add_special_tokens=False)["input_ids"]


def test_an_unknown_character_is_one_unknown_token(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["characters"]
    assert tokenizer("1é2")["input_ids"][1] == tokenizer.unk_token_id


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_it_loads_with_transformers_and_fits_its_tokenizer(folders: dict[str, Path], kind: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders[kind])
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.max_position_embeddings == TINY.max_position
    logits = model(input_ids=torch.tensor([tokenizer("1+2")["input_ids"]])).logits
    assert logits.shape == (1, 3, len(tokenizer)) and bool(logits.isfinite().all())


def test_the_seed_alone_decides_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    def weights(folder: Path) -> dict[str, Any]:
        return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())

    torch.manual_seed(99)
    before = torch.get_rng_state()
    make_policy(TINY, [], tmp_path / "same", seed=0)
    assert torch.equal(torch.get_rng_state(), before), "making a policy must not disturb other random numbers"
    make_policy(TINY, [], tmp_path / "other", seed=1)
    first, same, other = weights(folders["characters"]), weights(tmp_path / "same"), weights(tmp_path / "other")
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_embeddings_are_tied_as_asked(tmp_path: Path) -> None:
    for tied in (True, False):
        make_policy(TINY.model_copy(update={"tie_embeddings": tied}), [], tmp_path / str(tied), seed=0)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(tied))
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_the_plan_knows_its_size_before_it_is_made(folders: dict[str, Path], kind: str) -> None:
    new = TINY if kind == "characters" else BYTES
    planned = shape_of(PolicyConfig(new=new), LearnerConfig())
    made = AutoModelForCausalLM.from_pretrained(folders[kind])
    found = shape_of(PolicyConfig(path=str(folders[kind])), LearnerConfig())
    assert planned is not None and found is not None
    assert found.parameters == sum(parameter.numel() for parameter in made.parameters())
    assert planned == found


def test_a_half_made_policy_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
        with pytest.raises(OSError, match="no space left"):
            make_policy(TINY, [], tmp_path / "policy", seed=0)
    assert not (tmp_path / "policy").exists()
    make_policy(TINY, [], tmp_path / "policy", seed=0)
    AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_policy_takes_the_place_of_what_was_there(folders: dict[str, Path], tmp_path: Path) -> None:
    make_policy(BYTES, TEXTS, tmp_path / "policy", seed=0)
    make_policy(TINY, [], tmp_path / "policy", seed=0)
    found = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    assert found == {path.name: path.read_bytes() for path in folders["characters"].iterdir()}


def test_a_revision_goes_wherever_the_policy_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def read(name: str, *, revision: str | None = None, **_: Any) -> Any:
        asked.append((name, revision))
        raise OSError("no hub here")

    for kind in (AutoTokenizer, AutoConfig, AutoModelForCausalLM, GenerationConfig):
        monkeypatch.setattr(kind, "from_pretrained", read)
    commit = "0123456789abcdef0123456789abcdef01234567"
    policy = PolicyConfig(path="lab/model", revision=commit)
    name = local_or_hub(policy)
    with pytest.raises(ValueError, match="lab/model"):
        load_tokenizer(name)
    assert policy_config(policy) is None
    with pytest.raises(OSError):
        load_model(name, "float32")
    with pytest.raises(ValueError):
        open_model(f"lab/model@{commit}")
    assert asked == [("lab/model", commit)] * 4
    (tmp_path / "a@b").mkdir()
    folder = local_or_hub(PolicyConfig(path=str(tmp_path / "a@b")))
    assert (name_of(folder), revision_of(folder)) == (str(tmp_path / "a@b"), None)
    with pytest.raises(ValueError, match=r"is a local folder; remove policy\.revision"):
        local_or_hub(PolicyConfig(path=str(tmp_path), revision=commit))


def test_the_commit_that_was_identified_is_the_one_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(_commit_hash="abc123", get_text_config=lambda: SimpleNamespace())
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, **_: found)
    model = open_model("lab/model@main")
    assert (model.identity, model.path) == ("commit:abc123", "lab/model@abc123")


@pytest.mark.parametrize(
    ("offline", "remedy"),
    [(True, "if it is a folder, check the path .*`hf download me/none`"), (False, "check the path .* the network")],
)
def test_a_policy_that_is_not_there_is_refused_with_a_remedy(
    offline: bool, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    monkeypatch.setattr("grpo.policy.stored.ask_hub", lambda _: "the hub is offline" if offline else "")
    with pytest.raises(ValueError, match=f"policy.path='me/none' is neither .* hub; .*{remedy}"):
        load_tokenizer("me/none")
