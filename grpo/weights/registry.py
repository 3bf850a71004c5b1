"""Register the weight-transfer engines of this package with vLLM.

vLLM's workers may run in other processes than the generator. So this package has an entry point
`vllm.general_plugins`, which names `register`. vLLM then calls `register` in each worker.
"""

from __future__ import annotations

from grpo.config import ChosenTransport

# vLLM's name of the receiving engine, for each transport.
BACKENDS: dict[ChosenTransport, str] = {
    "object_store": "grpo_file",
    "gloo": "grpo_gloo",
    "nccl": "grpo_nccl",
    "ipc": "grpo_ipc",
}
_ENGINES = {
    "grpo_file": ("grpo.weights.engines", "FileWeightTransferEngine"),
    "grpo_gloo": ("grpo.weights.engines", "GlooWeightTransferEngine"),
    "grpo_nccl": ("grpo.weights.gpu_engines", "NcclWeightTransferEngine"),
    "grpo_ipc": ("grpo.weights.gpu_engines", "IpcWeightTransferEngine"),
}


def register() -> None:
    """Register the engines in this process. Safe to call twice."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, (module, engine) in _ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, engine)
