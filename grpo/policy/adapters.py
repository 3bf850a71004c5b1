"""LoRA (Hu et al. 2021, arXiv:2106.09685) with peft: adapters inside the model. Pushes and exports send merged tensors.

An adapted linear layer computes W x + (alpha / rank) B A x. W is frozen. At first, A [rank, in] is random and B [out,
rank] is zero. The adapters are inserted into the model's layers. So the model keeps its structure, and `PolicyLogprobs`
needs no special case.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config import LearnerConfig, LoraConfig
from grpo.deferred import deferred
from grpo.policy.hub import name_of, revision_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel
else:
    torch = deferred("torch")

# The name that peft gives to a layer's only adapter, and the prefix that peft gives to tensor names in a file.
_ADAPTER = "default"
_IN_A_FILE = "base_model.model."


@dataclass(frozen=True, slots=True)
class PolicyTensor:
    """A tensor of the policy, together with the adapter that changes it, if there is one.

    Attributes:
        name: name in Hugging Face format.
        parameter: the tensor without the adapter; with LoRA, it is frozen.
        lora_a: matrix A [rank, in], or None.
        lora_b: matrix B [out, rank], or None.
        scale: factor alpha / rank.
    """

    name: str
    parameter: nn.Parameter
    lora_a: nn.Parameter | None = None
    lora_b: nn.Parameter | None = None
    scale: float = 0.0

    @property
    def parts(self) -> list[nn.Parameter]:
        """All parameters that make up the whole tensor."""
        return [part for part in (self.parameter, self.lora_a, self.lora_b) if part is not None]

    def merged(self) -> Tensor:
        """Return W + scale B A, summed in float32 and rounded once to W's dtype. Without an adapter, return W."""
        if self.lora_a is None or self.lora_b is None:
            return self.parameter.detach()
        with torch.no_grad():
            change = self.scale * (self.lora_b.float() @ self.lora_a.float())
            return (self.parameter.float() + change).to(self.parameter.dtype)


def policy_tensors(model: nn.Module) -> Iterator[PolicyTensor]:
    """Yield every tensor of a policy, with or without an adapter. A tied tensor appears once for each of its names."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ".lora_A." in name or ".lora_B." in name:
            continue
        owner, _, last_name = name.rpartition(".")
        layer: Any = layers.get(owner.removesuffix(".base_layer"))
        if layer is None:
            yield PolicyTensor(name, parameter)
            continue
        plain = f"{owner.removesuffix('.base_layer')}.{last_name}"
        if last_name == "weight":
            a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            yield PolicyTensor(plain, parameter, a, b, layer.scaling[_ADAPTER])
        else:
            yield PolicyTensor(plain, parameter)


def adapter_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every trained parameter, with the name that peft gives to the parameter in a file."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            yield _IN_A_FILE + name.replace(f".{_ADAPTER}.", "."), parameter


def adapted_layers(model: PreTrainedModel, lora: LoraConfig) -> dict[str, nn.Linear]:
    """Return the linear layers that `lora.targets` names, by their full names. The output head is left out.

    Raises:
        ValueError: a target does not name a linear layer.
    """
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    linear = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer not in heads
    }
    if lora.targets == "all-linear":
        return linear
    missing = [target for target in lora.targets if not any(_matches(target, name) for name in linear)]
    if missing:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ValueError(
            f"learner.lora.targets: no linear layer under the output head is called {', '.join(missing)}; choose from "
            f"{there}, or all-linear"
        )
    return {name: layer for name, layer in linear.items() if any(_matches(target, name) for target in lora.targets)}


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def trained_parameters(model: PreTrainedModel, lora: LoraConfig | None) -> int:
    """Count the parameters with gradients and optimizer state. With LoRA, these are the parameters of A and B.

    Raises:
        ValueError: a target of `lora` does not name a linear layer.
    """
    if lora is None:
        return sum(parameter.numel() for parameter in model.parameters())
    layers = adapted_layers(model, lora).values()
    return lora.rank * sum(layer.in_features + layer.out_features for layer in layers)


def require_peft(learner: LearnerConfig) -> None:
    """Check that peft is installed if the configuration uses LoRA.

    Raises:
        ValueError: peft is not installed.
    """
    if learner.lora is not None and importlib.util.find_spec("peft") is None:
        raise ValueError(
            "learner.lora needs peft, which is not installed; install it with `pip install 'verigrpo[lora]'`, or "
            "remove learner.lora to train all weights"
        )


def add_adapters(model: PreTrainedModel, lora: LoraConfig, seed: int) -> None:
    """Insert adapters into `model`. Only their parameters are trained, and the head of a reward model.

    Args:
        model: model to change in place. The model's outputs stay the same, because B is zero.
        lora: section with the layers and the sizes.
        seed: seed for A, the same on every rank.

    Raises:
        ValueError: a target does not name a linear layer, or a named layer cannot be adapted.
    """
    from peft import LoraConfig, inject_adapter_in_model

    wanted = adapted_layers(model, lora)
    names = {name.rpartition(".")[2] for name in wanted} if lora.targets == "all-linear" else set(lora.targets)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type, unused-ignore]  # a fraction works too
        lora_dropout=lora.dropout,
        target_modules=sorted(names),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, _ADAPTER)
    # The head of a reward model starts at 0, so it has to be trained itself.
    for parameter in getattr(model, "score", torch.nn.Module()).parameters():
        parameter.requires_grad_(True)
    adapted = {name for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    if adapted != wanted.keys():
        odd = ", ".join(sorted(adapted ^ wanted.keys()))
        raise ValueError(
            f"learner.lora.targets also names layers that cannot be adapted and merged: {odd}; name linear layers "
            "under the output head"
        )


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off inside the context. The model then computes the starting policy."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        # While an adapter is off, its parameters do not require gradients. After it is on again, they do.
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(model: nn.Module, tensors: dict[str, Tensor], base: str, folder: Path) -> None:
    """Write adapters in the format of peft. `PeftModel.from_pretrained(policy, folder)` can load them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = model.peft_config[_ADAPTER]  # type: ignore[index]
    settings.base_model_name_or_path, settings.revision = name_of(base), revision_of(base)
    settings.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def check_adapter(model: nn.Module, folder: Path) -> None:
    """Check that the adapters in `folder`, written by `save_adapter`, have the settings of the model's adapters.

    Raises:
        ValueError: the rank, alpha or the targets differ.
    """
    settings: Any = model.peft_config[_ADAPTER]  # type: ignore[index]
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for key, ours in (("rank", "r"), ("alpha", "lora_alpha"), ("targets", "target_modules")):
        expected, came = getattr(settings, ours), saved[ours]
        if isinstance(expected, set):
            expected, came = sorted(expected), sorted(came)
        if expected != came:
            raise ValueError(
                f"the adapters in {folder} have {key} {came}, but learner.lora.{key} is {expected}; resume with the "
                "learner.lora that the run started with"
            )
