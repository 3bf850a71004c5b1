"""A common policy read without torch: the same answers as from transformers, or None."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import TINY, make_tiny_policy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from grpo.policy.plain import PlainConfig, plain_config, plain_tokenizer, stored_parameters
from grpo.policy.stored import context_of, load_tokenizer

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value != "remove"}))


def qwen2(folder: Path) -> Path:
    """A policy with the byte-pair tokenizer of Qwen2.5, as it stands on the hub."""
    folder.mkdir()
    vocabulary = {chr(at): at for at in range(33, 127)} | {"Ġ": 127, "12": 128, "<|endoftext|>": 129}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[("1", "2")])
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    shape = Qwen2Config(
        vocab_size=140, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    # A limit that splits the weights into several files with an index.
    Qwen2ForCausalLM(shape).save_pretrained(folder, max_shard_size="10KB")
    return folder


@pytest.fixture(scope="module", params=["characters", "bpe", "untied", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "policy"
    if request.param == "qwen2":
        return qwen2(path)
    changes = {"untied": {"tie_embeddings": False}}.get(request.param, {})
    made = make_tiny_policy(path, TINY.model_copy(update=changes))
    if request.param == "bpe":
        qwen2(path.with_name("other"))
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (made / name).write_bytes((path.with_name("other") / name).read_bytes())
    return made


def test_the_tokenizer_is_that_of_transformers(folder: Path) -> None:
    ours, theirs = plain_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert ours is not None and type(ours) is type(theirs)
    texts = ["1+1=?", "12 + 3", "é<end>\n", "<|endoftext|>"]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    ids = theirs("12+3")["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.chat_template, ours.special_tokens_map) == (theirs.chat_template, theirs.special_tokens_map)
    assert (ours.eos_token_id, ours.unk_token_id, ours.padding_side) == (
        theirs.eos_token_id, theirs.unk_token_id, theirs.padding_side,
    )  # fmt: skip
    if theirs.chat_template:
        said = [{"role": "user", "content": "1+1=?"}]
        rendered = [
            each.apply_chat_template(said, tokenize=False, add_generation_prompt=True) for each in (ours, theirs)
        ]
        assert rendered == ["[user]1+1=?[a]"] * 2


def test_the_config_and_the_size_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = plain_config(str(folder)), AutoConfig.from_pretrained(folder)
    assert ours is not None and context_of(ours) == context_of(theirs)
    for name in PlainConfig.__slots__:
        assert getattr(ours, name) == getattr(theirs, name, None), name
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert stored_parameters(str(folder), ours) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"num_key_value_heads": "remove"},
    ],
)
def test_a_config_that_does_not_say_everything_is_left_to_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_tiny_policy(tmp_path / "policy")
    assert plain_config(str(folder)) is not None
    edit(folder / "config.json", **changes)
    assert plain_config(str(folder)) is None


@pytest.mark.parametrize(
    "changes", [{"tokenizer_class": "LlamaTokenizer"}, {"auto_map": {"AutoTokenizer": ["a.B", None]}}]
)
def test_another_tokenizer_is_left_to_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_tiny_policy(tmp_path / "policy")
    assert plain_tokenizer(str(folder)) is not None
    edit(folder / "tokenizer_config.json", **changes)
    assert plain_tokenizer(str(folder)) is None


def test_a_folder_without_weights_has_no_size(tmp_path: Path) -> None:
    folder = make_tiny_policy(tmp_path / "policy")
    shape = plain_config(str(folder))
    assert shape is not None and stored_parameters(str(folder), shape)
    (folder / "model.safetensors").unlink()
    assert stored_parameters(str(folder), shape) is None


def test_a_path_that_cannot_be_a_name_is_refused_without_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder with a policy nor a readable name") as refused:
        load_tokenizer(str(tmp_path / "absent"))
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("path", ["runs/quickstart_sft/policy", "./policy", "/tmp/none/policy", "../policy", "a/b/"])
def test_a_path_gets_no_remedy_for_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    monkeypatch.setattr("grpo.policy.stored.Path.is_dir", lambda path: False)
    with pytest.raises(ValueError, match="check the path") as refused:
        load_tokenizer(path)
    assert "hf download" not in str(refused.value)
