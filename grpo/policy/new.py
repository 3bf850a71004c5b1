"""Make a new policy with random weights and a tokenizer, in the format of `transformers` and vLLM."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from grpo import files
from grpo.config import NewPolicyConfig

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
# With `chat`, the name of a role in front of each message is a single token. So is `<|tools|>`, before the names of
# the tools and of their arguments: a small policy cannot read whole schemas.
ROLES = tuple(f"<|{name}|>" for name in ("system", "user", "assistant", "tool", "tools"))
CHAT_TEMPLATE = """\
{#- The policy writes calls as <tool_call>{"name": ..., "arguments": {...}}</tool_call>. -#}
{%- if tools %}{{- '<|tools|>' }}
{%- for tool in tools %}{{- tool.function.name }}({{ tool.function.parameters.properties.keys() | join(', ') }})
{%- if not loop.last %}, {% endif %}{%- endfor %}{{- '<end>' }}{%- endif %}
{%- for message in messages %}{{- '<|' + message.role + '|>' + message.content + '<end>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""


def make_policy(new: NewPolicyConfig, texts: Iterable[str], folder: Path, seed: int) -> None:
    """Make a small Qwen3 policy in `folder`. An existing folder is replaced.

    Args:
        new: section with the shape and the tokenizer.
        texts: texts for the vocabulary of a byte-pair tokenizer; a character tokenizer does not read them.
        folder: folder of the policy, in Hugging Face format.
        seed: seed of the weights.
    """
    tokenizer = _characters(new) if new.tokenizer == "characters" else _byte_pairs(new, texts)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN if new.tokenizer == "characters" else None,
        clean_up_tokenization_spaces=False,
    )
    if new.chat:
        wrapped.add_tokens(list(ROLES))
        wrapped.chat_template = CHAT_TEMPLATE
    shape = shape_of(new, len(wrapped))
    shape.eos_token_id, shape.pad_token_id = wrapped.eos_token_id, wrapped.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(shape)
    # Writing takes milliseconds, so a progress bar is not useful in the log. Saving also imports DeepSpeed through
    # accelerate, and DeepSpeed warns that there is no GPU. Suppress both messages.
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    # If the folder exists, other code assumes that the policy in it is complete. So the folder must appear only when
    # the policy is complete.
    with files.whole_folder(folder) as partial:
        model.save_pretrained(partial)
        wrapped.save_pretrained(partial)
    transformers_logging.enable_progress_bar()


def shape_of(new: NewPolicyConfig, vocabulary: int) -> Qwen3Config:
    """Return the architecture of a new policy; `vocabulary` is the number of tokens."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=new.hidden_size,
        intermediate_size=new.intermediate_size,
        num_hidden_layers=new.layers,
        num_attention_heads=new.heads,
        num_key_value_heads=new.key_value_heads,
        head_dim=new.hidden_size // new.heads,
        max_position_embeddings=new.max_position,
        tie_word_embeddings=new.tie_embeddings,
        bos_token_id=None,
    )


def _characters(new: NewPolicyConfig) -> Tokenizer:
    # Verifiers read the tags as text, so tags are ordinary added tokens, not special tokens.
    names = [PAD, END, UNKNOWN, *dict.fromkeys(new.alphabet)]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(list(new.tags))
    return tokenizer


def _byte_pairs(new: NewPolicyConfig, texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=new.vocabulary - len(new.tags),
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(new.tags))
    return tokenizer
