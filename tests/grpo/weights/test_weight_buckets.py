"""What travels in a push: buckets, messages, and files that safetensors reads."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import safetensors.torch
import torch
from torch import nn

from grpo.weights.buckets import (
    ALIGNMENT,
    MESSAGE_BYTES,
    Bucket,
    TensorInfo,
    cut,
    further_names_in,
    messages,
    runs,
    safetensors_header,
    under_all_names,
)
from grpo.weights.source import GATHERED_SHARE, PolicyWeights, gathered_together

MIB = 1 << 20


def info(name: str, mib: float, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name, dtype, (int(mib * MIB / (4 if dtype == "float32" else 2)),))


LAYERS = [
    info("model.embed_tokens.weight", 30),
    *[
        info(f"model.layers.{layer}.{name}", size)
        for layer in range(3)
        for name, size in (
            ("self_attn.q_proj.weight", 2),
            ("self_attn.k_proj.weight", 1),
            ("mlp.up_proj.weight", 6),
            ("mlp.down_proj.weight", 6),
            ("input_layernorm.weight", 0.01),
        )
    ],
    info("lm_head.weight", 30),
]


@pytest.mark.parametrize("mib", [1, 12, 16, 40, 1000])
def test_buckets_hold_whole_blocks_and_no_more_than_they_may(mib: int) -> None:
    buckets = cut(LAYERS, mib * MIB)
    assert [tensor for bucket in buckets for tensor in bucket.tensors] == LAYERS
    assert [bucket.number for bucket in buckets] == list(range(len(buckets)))
    for bucket in buckets:
        assert bucket.nbytes <= mib * MIB or len({tensor.block for tensor in bucket.tensors}) == 1
    blocks = [{tensor.block for tensor in bucket.tensors} for bucket in buckets]
    assert all(not one & other for one, other in itertools.pairwise(blocks)), "a block was cut"
    # None could have held the next one's first block.
    for bucket, after in itertools.pairwise(buckets):
        first = [tensor.nbytes for tensor in after.tensors if tensor.block == after.tensors[0].block]
        assert bucket.nbytes + sum(first) > mib * MIB


def test_messages_are_aligned_in_order_and_of_a_useful_size() -> None:
    tensors = [info(f"a.{i}.w", size) for i, size in enumerate((0.1, 0.2, 9, 0.00001, 3, 2, 0.3, 4, 30, 1))]
    found = messages(tensors)
    assert [tensor for message in found for tensor in message.tensors] == tensors
    end = 0
    for message in found:
        assert message.start >= end and message.start - end < ALIGNMENT
        assert list(message.starts) == sorted(message.starts) and message.starts[0] == message.start
        assert all(start % ALIGNMENT == 0 for start in message.starts)
        assert message.end == message.starts[-1] + message.tensors[-1].nbytes
        # A large tensor goes alone, so that it is sent from where it lies.
        assert len(message.tensors) == 1 or message.end - message.start <= MESSAGE_BYTES
        end = message.end
    assert [len(message.tensors) for message in found] == [2, 1, 2, 2, 1, 1, 1]


def test_runs_and_lots_stay_within_their_limits() -> None:
    found = messages(LAYERS)
    lots = list(runs(found, 10 * MIB))
    assert [message for run in lots for message in run] == found
    assert all(len(run) == 1 or run[-1].end - run[0].start <= 10 * MIB for run in lots)
    assert list(runs(found, math.inf)) == [found]
    gathered = list(gathered_together(LAYERS, 40 * MIB))
    assert [tensor for lot in gathered for tensor in lot] == LAYERS
    assert all(len(lot) == 1 or sum(t.nbytes for t in lot) <= GATHERED_SHARE * 40 * MIB for lot in gathered)
    assert max(len(lot) for lot in gathered) > 1 and list(gathered_together(LAYERS, None)) == [LAYERS]


def test_what_vllm_is_told_is_plain() -> None:
    bucket = Bucket(3, (info("a.b.weight", 1, "bfloat16"),), (("GPU-1", (0, b"handle", 5, False)),))
    assert bucket.update_info() == {
        "number": 3,
        "names": ["a.b.weight"],
        "dtype_names": ["bfloat16"],
        "shapes": [[MIB // 2]],
        "handles": [["GPU-1", [0, b"handle", 5, False]]],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_hold_every_tensor_once_with_all_of_its_names(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.embed = nn.Embedding(7, 5)
    model.layers = nn.ModuleList([nn.Linear(5, 3) for _ in range(4)])
    model.head = nn.Linear(5, 7, bias=False)
    model.head.weight = model.embed.weight
    weights = PolicyWeights(model, dtype)
    expected = {name: value.detach().to(dtype) for name, value in model.named_parameters(remove_duplicate=False)}
    assert next(one.names for one in weights.infos()) == ("embed.weight", "head.weight")
    assert sorted(name for one in weights.infos() for name in one.names) == sorted(expected)
    once = sum(value.numel() for value in model.parameters()) * (torch.finfo(dtype).bits // 8)
    assert sum(one.nbytes for one in weights.infos()) == once
    for bucket_bytes in (1, 200, 1 << 20):
        found: dict[str, torch.Tensor] = {}
        for file in weights.files(bucket_bytes, wanted=True):
            tensors = safetensors.torch.load(file.tobytes())
            loaded = dict(under_all_names(tensors.items(), further_names_in(metadata_of(file.tobytes()))))
            assert not loaded.keys() & found.keys()
            found |= loaded
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not list(weights.files(200, wanted=False))
    assert {name: value.tolist() for name, value in weights} == {name: v.tolist() for name, v in expected.items()}


def metadata_of(file: bytes) -> dict[str, str] | None:
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    metadata: dict[str, str] | None = header.get("__metadata__")
    return metadata


def test_a_header_is_aligned_and_says_how_long_it_is() -> None:
    for length in range(1, 20):
        header = safetensors_header(Bucket(0, (info("a.b." + "w" * length, 1),)))
        assert len(header) % 8 == 0 and int.from_bytes(header[:8], "little") == len(header) - 8
