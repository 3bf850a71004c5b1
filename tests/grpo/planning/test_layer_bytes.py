"""The memory plan of a learner rank: the measured layer, and all terms together beside independent counts."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_policy import qwen3_shape
from torch import Tensor, nn
from transformers import DeepseekV3Config, FalconConfig, Qwen2Config, Qwen3Config

from grpo.config import LearnerConfig, LoraConfig, PolicyConfig, TrainConfig
from grpo.planning.layer_bytes import LayerSetting, LiveBytes, measured_layer
from grpo.planning.layer_sizes import LayerBytes, plain_layer
from grpo.planning.memory import GIB, _head, add_memory, learner_memory
from grpo.planning.plan_tables import new_table
from grpo.planning.policy_shape import PolicyShape, planned_shape, shape_of
from grpo.policy.flops import FUSED_LOGIT_BYTES, LOGIT_BYTES
from grpo.policy.fused_head import FusedHead
from grpo.policy.head import Entropy, LogprobHead
from grpo.policy.plain import PlainConfig

TOKENS = 16_384
# Qwen3's published shapes: hidden size, layers, heads, intermediate size, tied embeddings.
SIZES = {"1.7B": (2048, 28, 16, 6144, True), "8B": (4096, 36, 32, 12288, False)}
# GiB of a rank at the peak of the backward pass, in microbatches of 16,384 tokens, with eager kernels. An audit counted
# them by hand before this plan was written (section D, "Memory of one learner rank"): states by ZeRO's stage, tensors
# that a real layer saved on a CPU (116,904 bytes a token at 1.7B, 223,528 at 8B), a bucket of 5e8 elements (two at
# stage 3), 1e9 live parameters at stage 3, logits, and the gradient of the head. Its table leaves out the row of 8B on
# one GPU without checkpointing; the same sum gives it.
AUDIT = {
    ("1.7B", 1, 2, False): 82.0,
    ("1.7B", 1, 2, True): 35.6,
    ("1.7B", 8, 3, False): 59.6,
    ("1.7B", 8, 3, True): 13.1,
    ("8B", 1, 2, False): 264.5,
    ("8B", 1, 2, True): 149.6,
    ("8B", 8, 3, False): 147.1,
    ("8B", 8, 3, True): 32.2,
}


def architecture(name: str) -> Qwen3Config:
    return qwen3_shape(*SIZES[name])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in SIZES}
    for name, folder in found.items():
        architecture(name).save_pretrained(folder)
    return found


def planned(folder: Path, **learner: object) -> tuple[PolicyShape, float]:
    policy = PolicyConfig.model_validate({"path": str(folder), "dtype": "bfloat16"})
    settings = LearnerConfig.model_validate({"microbatch_tokens": TOKENS, "kernels": "eager", **learner})
    shape = shape_of(policy, settings)
    assert shape is not None
    return shape, learner_memory(shape, policy, settings, None).needed / GIB


@pytest.mark.parametrize("case", AUDIT, ids=lambda case: "-".join(map(str, case)))
def test_the_plan_is_within_a_tenth_of_the_audits_own_count(
    folders: dict[str, Path], case: tuple[str, int, int, bool]
) -> None:
    name, ranks, stage, again = case
    _, needed = planned(folders[name], ranks=ranks, zero_stage=stage, gradient_checkpointing=again)
    assert needed == pytest.approx(AUDIT[case], rel=0.1)


def test_a_share_of_the_layers_lies_between(folders: dict[str, Path]) -> None:
    needed = [planned(folders["1.7B"], gradient_checkpointing=share)[1] for share in (0, 0.25, 0.5, 1)]
    shape, _ = planned(folders["1.7B"])
    layer = (shape.layer.kept - shape.layer.input) / GIB
    assert needed[1] - needed[2] == pytest.approx(7 * layer)
    # Without recomputation the fullest moment is another: the backward pass of the output head.
    assert needed[0] - needed[1] == pytest.approx(7 * layer, rel=0.15) and needed[2] > needed[3]


def test_a_layer_is_measured_with_few_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is enough for some ten thousand operators on the meta device, on any machine."""
    counted, dispatch = 0, LiveBytes.__torch_dispatch__

    def counting(*arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        return dispatch(*arguments)

    monkeypatch.setattr(LiveBytes, "__torch_dispatch__", counting)
    measured_layer(architecture("8B"), LayerSetting("bfloat16"), TOKENS)
    assert 100 < counted < 3000


def test_a_layer_keeps_what_a_count_by_hand_says() -> None:
    shape, size = architecture("1.7B"), 2
    hidden, inner, queries, keys = 2048, 6144, 2048, 1024
    eager = measured_layer(shape, LayerSetting("bfloat16"), TOKENS)
    # Norms keep a float32 copy, the normed values and, before a linear layer, the output. Attention keeps q, k, v,
    # output and a log-sum-exp. The MLP keeps gate, activation, up and product. Each norm keeps a factor for each row.
    by_hand = 2 * 8 * hidden + 6 * (queries + keys) + size * 2 * (queries + keys) + 4 * 16 + 8 * inner
    assert eager.kept == TOKENS * (by_hand + 4 * (2 + 16 + 8))
    assert eager.input == TOKENS * size * hidden
    # Liger's norms keep their inputs, and its MLP gate and up (the last layer's input is a product of both).
    liger = measured_layer(shape, LayerSetting("bfloat16", "liger"), TOKENS)
    fused = 2 * size * 2 * hidden + size * (queries + keys) + size * 2 * (queries + keys) + 4 * 16 + 6 * inner
    assert liger.kept == TOKENS * (fused + 4 * (2 + 16 + 8))
    assert liger.again > liger.kept and liger.backward < eager.backward


def test_shared_prompts_repeat_what_attention_keeps() -> None:
    plain, shared = (
        measured_layer(architecture("1.7B"), LayerSetting("bfloat16", "liger", each), 1024) for each in (1, 2)
    )
    # q, k, v and output, and the log-sum-exp, once more; beside them the output without the repeated rows.
    assert shared.kept - plain.kept == 1024 * (2 * 2 * (2048 + 1024) + 4 * 16 + 2 * 2048)


def test_adapters_keep_their_inputs_in_float32() -> None:
    pytest.importorskip("peft")
    whole, adapted = (
        measured_layer(architecture("1.7B"), LayerSetting("bfloat16", "liger", 1.0, lora), 4096)
        for lora in (None, LoraConfig(rank=16))
    )
    assert 1.4 * whole.kept < adapted.kept < 2 * whole.kept


@pytest.mark.parametrize("family", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_formula_for_a_cpu_is_the_measured_layer(family: type, dtype: str) -> None:
    shape = family(
        hidden_size=96, intermediate_size=256, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=2,
        head_dim=16, vocab_size=50,
    )  # fmt: skip
    plain = PlainConfig(**{name: getattr(shape, name) for name in PlainConfig.__slots__})
    formula = plain_layer(plain, {"float32": 4, "bfloat16": 2}[dtype], 4096)
    measured = measured_layer(shape, LayerSetting(dtype), 4096)  # type: ignore[arg-type]
    assert formula.kept == measured.kept and formula.input == measured.input
    assert formula.outside == pytest.approx(measured.outside, rel=0.05)
    assert formula.again == pytest.approx(measured.again, rel=0.2)
    assert formula.backward == pytest.approx(measured.backward, rel=0.3)


def _statistics_on_meta(logits_CV: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """A compiled function makes its results and nothing else."""
    one_C = logits_CV.new_empty(len(logits_CV), dtype=torch.float32)
    return one_C, torch.empty_like(one_C), torch.empty_like(one_C)


FUSED = FusedHead(_statistics_on_meta, lambda *_: None)


@pytest.mark.parametrize("fused", [None, FUSED], ids=["eager", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("chunks", "entropy", "frozen"), [(1, "value", False), (5, "value", False),
                                                            (5, "gradient", False), (5, "value", True)])  # fmt: skip
def test_the_head_needs_what_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, dtype: str, chunks: int, entropy: Entropy, frozen: bool, fused: FusedHead | None
) -> None:
    monkeypatch.setattr("grpo.policy.head.add_product", lambda *_: None)
    hidden, vocabulary, size = 2048, 151_936, {"float32": 4, "bfloat16": 2}[dtype]
    tokens = chunks * (LOGIT_BYTES // (4 * vocabulary) if fused is None else FUSED_LOGIT_BYTES // (size * vocabulary))
    with torch.device("meta"):
        head = LogprobHead(nn.Linear(hidden, vocabulary, bias=False, dtype=getattr(torch, dtype)), fused)
        hidden_TE = torch.empty(tokens, hidden, dtype=getattr(torch, dtype), requires_grad=True)
        targets_T = torch.empty(tokens, dtype=torch.int64)
    head.requires_grad_(not frozen)
    live = LiveBytes([head.weight, hidden_TE, targets_T])
    with live:
        logprobs_T, entropy_T = head(hidden_TE, targets_T, 1.0, entropy)
        (logprobs_T + entropy_T).sum().backward()
    shape = PolicyShape(0, 0, 0, vocabulary, hidden, 1, True, LayerBytes(0, 0, 0, 0, 0))
    by_plan = sum(_head(shape, size, frozen, tokens, entropy == "gradient", fused is not None))
    by_plan += size * hidden * tokens
    assert by_plan == pytest.approx(live.peak, rel=0.05 if not frozen else 0.25)


def test_a_policy_that_cannot_be_measured_is_planned_without_activations(tmp_path: Path) -> None:
    # Its code does not ask the registry of attention for `packed` in the way that others do.
    FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100).save_pretrained(tmp_path)
    settings = TrainConfig.model_validate(
        {
            "run": {"folder": "run"},
            "policy": {"path": str(tmp_path)},
            "data": {"path": "rows.jsonl"},
            "verifiers": [{"name": "answer", "use": "numeric"}],
            "train": {"steps": 1},
            "cluster": {"device": "gpu"},
        }
    )
    shape = planned_shape(settings)
    assert shape is not None and shape.layer.kept == 0
    printed = StringIO()
    Console(file=printed, width=1000).print(add_memory(new_table("memory"), settings, shape))
    assert "activations are not counted, because the code of falcon does not run" in printed.getvalue()


def test_values_of_another_size_than_queries() -> None:
    shape = DeepseekV3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        first_k_dense_replace=2, vocab_size=100,
    )  # fmt: skip
    assert measured_layer(shape, LayerSetting("bfloat16"), 256).kept > 0


def test_live_bytes_end_when_the_last_user_ends() -> None:
    known = torch.empty(10, device="meta")
    live = LiveBytes([known])
    with live:
        first = torch.empty(100, device="meta")
        view = first[:10]
        known.add_(view)
        assert live.now == 400
        second = first + 1
        del first
        assert live.now == 800  # The view still holds it.
        del view
        assert live.now == 400 and live.peak == 800
        del second
    assert live.now == 0
