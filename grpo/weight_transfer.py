"""vLLM's end of a weight push: a backend of its weight-transfer interface that reads safetensors files.

vLLM's workers may be in other processes than the generator, so `register` is also named in this package's
`vllm.general_plugins` entry point, which vLLM calls in each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file

BACKEND = "grpo_file"


def register() -> None:
    """Make the backend known to vLLM in this process. Safe to call twice."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, _engine_class())


def _engine_class() -> type[Any]:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class NothingToInit(WeightTransferInitInfo):
        pass

    @dataclass
    class FileUpdate(WeightTransferUpdateInfo):
        path: str

    class FileWeightTransferEngine(WeightTransferEngine[NothingToInit, FileUpdate]):
        """Loads each file into the model through vLLM's layerwise reload, as its own backends do."""

        init_info_cls = NothingToInit
        update_info_cls = FileUpdate

        def init_transfer_engine(self, init_info: NothingToInit) -> None:
            """There is no connection to make."""

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # The base class waits for an accelerator here, which a CPU does not have.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: FileUpdate) -> None:
            model: Any = self.model
            model.load_weights(list(load_file(update_info.path).items()))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            """There is nothing to release."""

    return FileWeightTransferEngine
