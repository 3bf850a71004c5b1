"""The learner's part of a checkpoint: each rank writes its state and can load this state."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from grpo.learner.deepspeed_setup import plain_data_only
from grpo.learner.export import PolicyExport
from grpo.learner.setup import LearnerSetup
from grpo.policy.adapters import check_adapter
from grpo.policy.logprobs import PolicyLogprobs
from grpo.report import run_files

# File in a checkpoint: the reference, if it may differ from the starting policy.
REFERENCE = "reference.pt"
# Folder in a checkpoint: LoRA's adapters alone.
ADAPTER = "adapter"
# Classes that DeepSpeed's part of a checkpoint contains besides tensors and plain data.
_IN_A_CHECKPOINT = (fragment_address, LossScaler, DynamicLossScaler, ZeroStageEnum)


@dataclass(slots=True)
class Counts:
    """A rank's counts. A checkpoint stores the counts under these names.

    Attributes:
        optimizer_steps: number of optimizer steps so far, including skipped steps.
        skipped_in_a_row: number of skipped steps since the last update.
    """

    optimizer_steps: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class LearnerState:
    """Writes and reads the state of one rank.

    Attributes:
        setup: the rank's setup.
        engine: DeepSpeed's engine.
        reference: the reference policy, if it is a second model; otherwise None.
        export: writes the policy in Hugging Face format.
    """

    setup: LearnerSetup
    engine: Any
    reference: PolicyLogprobs | None
    export: PolicyExport

    def save(self, folder: Path, counts: Counts) -> None:
        """Write this rank's part of the training state. Rank 0 also writes the policy in Hugging Face format.

        With LoRA, the state covers only the adapters. The adapters are also written in peft's format.
        """
        with_adapters = self.setup.learner.lora is not None
        self.engine.save_checkpoint(
            str(folder / "learner"),
            tag="state",
            client_state={**dataclasses.asdict(counts), "frozen_sum": self.export.frozen_sum()},
            save_latest=False,
            exclude_frozen_parameters=with_adapters,
        )
        algorithm = self.setup.algorithm
        if self.reference is not None and algorithm and algorithm.reference_refresh and self.setup.rank == 0:
            torch.save(self.reference.state_dict(), folder / REFERENCE)
        if with_adapters:
            self.export.adapter(folder / ADAPTER)
        self.export.policy(str(folder / run_files.POLICY))

    def load(self, folder: Path) -> Counts:
        """Load the state that `save` wrote.

        Raises:
            ValueError: the folder has no state, another number of ranks wrote the state, the state may run code, or its
                adapters do not fit `learner.lora` or the base weights.
        """
        adapter, with_adapters = folder / ADAPTER, self.setup.learner.lora is not None
        if adapter.is_dir() != with_adapters:
            raise ValueError(
                f"{folder} was written {'with' if adapter.is_dir() else 'without'} learner.lora; resume with the "
                "learner.lora that the run started with"
            )
        if with_adapters:
            check_adapter(self.engine.module.model, adapter)
        with plain_data_only(str(folder), _IN_A_CHECKPOINT):
            path, state = self.engine.load_checkpoint(
                str(folder / "learner"), tag="state", load_module_strict=not with_adapters
            )
        if path is None:
            raise ValueError(
                f"{folder} holds no learner state that {self.setup.world_size} ranks could read; "
                "resume with the learner.ranks of the run that wrote it"
            )
        if with_adapters and not math.isclose(state["frozen_sum"], self.export.frozen_sum(), rel_tol=1e-9):
            raise ValueError(
                f"the adapters in {folder} were trained on other weights than those of {self.setup.reference_path}; "
                "resume with the policy.path and policy.dtype that the run started from"
            )
        if self.reference is not None and (folder / REFERENCE).exists():
            stored = torch.load(folder / REFERENCE, weights_only=True, map_location=self.setup.device)
            self.reference.load_state_dict(stored)
        return Counts(state["optimizer_steps"], state.get("skipped_in_a_row", 0))
