"""Send a pool's verifiers to its processes: the parent packs them, the nursery builds them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.adapt import Adapted
from rewards.build import VerifierSpec, build_verifier
from rewards.verifier import Verifier


def pack_setup(verifiers: Mapping[str, Verifier | VerifierSpec], memory_mib: int | None) -> bytes:
    """Pickle the verifiers, the memory limit and the import path for the nursery.

    Raises:
        ValueError: a verifier cannot be pickled, or another process could not import it.
    """
    entries: dict[str, tuple[str | None, dict[str, Any], Any]] = {}
    for name, verifier in verifiers.items():
        if isinstance(verifier, VerifierSpec):
            entries[name] = (verifier.use, dict(verifier.options), None)
            continue
        home = getattr(verifier, "__module__", None)
        if home == "__main__":
            raise ValueError(
                f"verifier {name!r} is defined in the script that was started, which workers do not import; "
                f"move it to a module, or name it as 'path/to/file.py:function' in a VerifierSpec"
            )
        entries[name] = (None, {}, verifier)
    try:
        pickled = pickle.dumps(entries)
    except (pickle.PicklingError, AttributeError, TypeError) as problem:
        raise ValueError(
            f"verifiers {sorted(entries)} cannot be sent to a worker ({problem}); "
            f"give module-level functions, objects of plain data, or a VerifierSpec"
        ) from problem
    memory_bytes = None if memory_mib is None else memory_mib << 20
    # The folder of these packages comes first: the folder of a user's script may have another `sandbox/`.
    path = [str(Path(__file__).resolve().parents[2]), *sys.path]
    return pickle.dumps({"verifiers": pickled, "memory_bytes": memory_bytes, "path": path})


def build_all(setup: Mapping[str, Any]) -> dict[str, Adapted]:
    """Build the verifiers that are given as specs, and adapt the verifiers that are given as objects."""
    verifiers: dict[str, Adapted] = {}
    for name, (use, options, thing) in pickle.loads(setup["verifiers"]).items():
        if use is not None:
            verifiers[name] = build_verifier(use, options)
        else:
            verifiers[name] = thing if isinstance(thing, Adapted) else Adapted(thing)
    return verifiers
