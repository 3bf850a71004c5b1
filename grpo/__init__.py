"""VeriGRPO: reinforcement learning from verifiable rewards.

    import grpo

    cold_start = grpo.sft(grpo.load_config("configs/quickstart_sft.yaml"))
    run = grpo.train(grpo.load_config("configs/quickstart.yaml", "train.steps=80"))
    print(run.summary)

docs/python.md shows how to use the public names. `import grpo` loads only the standard library. The first use of a
public name imports the module of that name.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from grpo import package_finder

if TYPE_CHECKING:
    from grpo.config import DpoConfig, RewardConfig, SftConfig, TrainConfig
    from grpo.jobs import dpo, evaluate, load_config, reward, sft, train
    from grpo.run.stored_run import StoredRun, read_run
    from rewards import Status, Verdict, build_verifier, correct, scored, unparseable, wrong

__all__ = [
    "DpoConfig",
    "RewardConfig",
    "SftConfig",
    "Status",
    "StoredRun",
    "TrainConfig",
    "Verdict",
    "build_verifier",
    "correct",
    "dpo",
    "evaluate",
    "load_config",
    "read_run",
    "reward",
    "scored",
    "sft",
    "train",
    "unparseable",
    "wrong",
]

package_finder.install()

# Without any handler, Python would write warnings to standard error. This handler discards records.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_MODULES = {
    "grpo.config": ("DpoConfig", "RewardConfig", "SftConfig", "TrainConfig"),
    "grpo.jobs": ("dpo", "evaluate", "load_config", "reward", "sft", "train"),
    "grpo.run.stored_run": ("StoredRun", "read_run"),
    "rewards": ("Status", "Verdict", "build_verifier", "correct", "scored", "unparseable", "wrong"),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'grpo' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """Return the public names, for completion in a shell."""
    return sorted({*globals(), *__all__})
