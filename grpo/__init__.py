"""VeriGRPO: reinforcement learning from verifiable rewards.

    import grpo

    cold_start = grpo.sft(grpo.load_config("configs/quickstart_sft.yaml"))
    run = grpo.train(grpo.load_config("configs/quickstart.yaml", "train.steps=80"))
    print(run.summary)

These names are what a user's program needs; docs/python.md shows them at work. `import grpo` itself loads nothing but
the standard library: each name is looked up in its module at its first use.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from grpo import package_finder

if TYPE_CHECKING:
    from grpo.config import SftConfig, TrainConfig
    from grpo.jobs import evaluate, load_config, sft, train
    from grpo.run.stored_run import StoredRun, read_run
    from rewards import Status, Verdict, build_verifier, correct, scored, unparseable, wrong

__all__ = [
    "SftConfig",
    "Status",
    "StoredRun",
    "TrainConfig",
    "Verdict",
    "build_verifier",
    "correct",
    "evaluate",
    "load_config",
    "read_run",
    "scored",
    "sft",
    "train",
    "unparseable",
    "wrong",
]

package_finder.install()

# Without a log that is open, records go nowhere: Python would show warnings on standard error.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_MODULES = {
    "grpo.config": ("SftConfig", "TrainConfig"),
    "grpo.jobs": ("evaluate", "load_config", "sft", "train"),
    "grpo.run.stored_run": ("StoredRun", "read_run"),
    "rewards": ("Status", "Verdict", "build_verifier", "correct", "scored", "unparseable", "wrong"),
}


def __getattr__(name: str) -> Any:
    """Look a public name up in its module (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'grpo' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The public names, for completion in a shell."""
    return sorted({*globals(), *__all__})
