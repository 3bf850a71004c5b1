"""Makes our ends of a weight push known to vLLM.

vLLM's workers may be in other processes than the generator, so `register` is also named in this package's
`vllm.general_plugins` entry point, which vLLM calls in each of them.
"""

from __future__ import annotations

from grpo.config import ChosenTransport

# Transport -> vLLM's name for the engine of `grpo.weights.engines` or `grpo.weights.gpu_engines` that receives it.
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
    """Make the engines known to vLLM in this process. Safe to call twice."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, (module, engine) in _ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, engine)
