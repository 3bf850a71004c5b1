"""Read a common policy in a local folder without importing torch.

`AutoConfig` and `AutoTokenizer` import torch and the models of `transformers`, which takes seconds. For the families
below, `config.json` states everything, and the class of the tokenizer is known. Then these functions give the same
answers as `transformers`. For any other policy they return None, and the caller asks `transformers`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The class that `AutoTokenizer` chooses, by the name in tokenizer_config.json (without `Fast`).
_TOKENIZERS = {
    "TokenizersBackend": "PreTrainedTokenizerFast",
    "PreTrainedTokenizer": "PreTrainedTokenizerFast",
    "Qwen2Tokenizer": "Qwen2Tokenizer",
}
# For qwen2, `AutoTokenizer` ignores a name other than its own.
_FAMILIES = {"qwen2": ("Qwen2Tokenizer",), "qwen3": tuple(_TOKENIZERS)}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class PlainConfig:
    """The architecture of a policy, with the names of `transformers`."""

    model_type: str
    max_position_embeddings: int
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None
    vocab_size: int
    tie_word_embeddings: bool


def plain_config(path: str) -> PlainConfig | None:
    """Return the architecture in a policy's folder; None if only `transformers` can read it."""
    content = _json(Path(path) / "config.json")
    if content.get("model_type") not in _FAMILIES or "quantization_config" in content:
        return None
    rope = [content.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    # A scaled rotary embedding changes the number of positions.
    if any(each.get("rope_type", each.get("type", "default")) != "default" for each in rope):
        return None
    values = {"head_dim": None, **content}
    if not all(name in values for name in PlainConfig.__slots__):
        return None
    return PlainConfig(**{name: values[name] for name in PlainConfig.__slots__})


def plain_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in a policy's folder; None if only `AutoTokenizer` can choose its class."""
    folder = Path(path)
    settings = _json(folder / "tokenizer_config.json")
    named = str(settings.get("tokenizer_class")).removesuffix("Fast")
    family = str(_json(folder / "config.json").get("model_type"))
    if named not in _FAMILIES.get(family, ()) or "auto_map" in settings or not (folder / "tokenizer.json").is_file():
        return None
    import transformers

    loaded: PreTrainedTokenizerBase = getattr(transformers, _TOKENIZERS[named]).from_pretrained(path)
    return loaded


def stored_parameters(path: str, config: PlainConfig) -> int | None:
    """Return the number of parameters in the policy's files; None if the folder has no safetensors files."""
    folder = Path(path)
    names = set(_json(folder / _INDEX).get("weight_map", {}).values()) or {_SINGLE}
    if not all((folder / name).is_file() for name in names):
        return None
    return sum(
        math.prod(shape)
        for file in names
        for name, shape in _shapes(folder / file)
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    )


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield name and shape of each tensor: 8 bytes with the header's length, then the header as JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    for name, tensor in header.items():
        if name != "__metadata__":
            yield name, tensor["shape"]


def _json(file: Path) -> dict[str, Any]:
    """Return a file's content; empty if `transformers` should report the problem."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
