"""All that our sources use of vLLM exists in the installed build and, with `make wheel-check`, in the build for GPUs.

Nobody can import the build for GPUs on a machine without CUDA, so both are read as text.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

import pytest
from wheel_library import Function, Library, Symbol, default_of
from wheel_uses import Uses, modules_below, remote_calls

ROOT = Path(__file__).parents[2]
OURS = ("grpo", "rewards", "launch")
# Classes with the methods that our sources call by name: in each of vLLM's workers, and in the engine's process.
WORKERS = ("vllm.v1.worker.gpu_worker:Worker", "vllm.v1.worker.cpu_worker:CPUWorker")
ENGINE_CORE = "vllm.v1.engine.core:EngineCore"
LLM_ENGINE = "vllm.v1.engine.llm_engine:LLMEngine"
# Defaults that our code relies on because it does not set them, and why: (class or method, field, default, reason).
DEFAULTS = [
    ("vllm.config.scheduler:SchedulerConfig", "DEFAULT_MAX_NUM_BATCHED_TOKENS", "2048", "why the generator sets it"),
    ("vllm.engine.arg_utils:EngineArgs", "max_num_batched_tokens", "None", "what the generator sets stays"),
    ("vllm.engine.arg_utils:EngineArgs", "kv_cache_memory_bytes", "None", "gpu_memory_share decides the cache's size"),
    ("vllm.engine.arg_utils:EngineArgs", "kv_cache_dtype", "'auto'", "keys and values in the policy's dtype"),
    ("vllm.engine.arg_utils:EngineArgs", "quantization", "None", "weights in the learner's dtype"),
    ("vllm.engine.arg_utils:EngineArgs", "load_format", "'auto'", "safetensors, as the export writes them"),
    ("vllm.engine.arg_utils:EngineArgs", "speculative_config", "None", "one token a step, each with a version"),
    ("vllm.engine.arg_utils:EngineArgs", "trust_remote_code", "False", "no code of a policy runs"),
    ("vllm.engine.arg_utils:EngineArgs", "enable_lora", "False", "pushes bring merged weights"),
    ("vllm.engine.arg_utils:EngineArgs", "skip_tokenizer_init", "False", "stop strings need the tokenizer"),
    ("vllm.engine.arg_utils:EngineArgs", "scheduling_policy", "'fcfs'", "requests run in the order of their arrival"),
    ("vllm.sampling_params:SamplingParams", "repetition_penalty", "1.0", "samples are of the policy itself"),
    ("vllm.sampling_params:SamplingParams", "presence_penalty", "0.0", "samples are of the policy itself"),
    ("vllm.sampling_params:SamplingParams", "frequency_penalty", "0.0", "samples are of the policy itself"),
    ("vllm.sampling_params:SamplingParams", "logit_bias", "None", "samples are of the policy itself"),
    ("vllm.sampling_params:SamplingParams", "allowed_token_ids", "None", "samples are of the policy itself"),
    ("vllm.sampling_params:SamplingParams", "bad_words", "None", "samples are of the policy itself"),
    ("vllm.sampling_params:SamplingParams", "min_tokens", "0", "a completion may end at once"),
    ("vllm.sampling_params:SamplingParams", "ignore_eos", "False", "a completion ends at the end token"),
    (
        "vllm.v1.engine.llm_engine:LLMEngine.from_engine_args",
        "enable_multiprocessing",
        "False",
        "vLLM's variable decides",
    ),
    (
        "vllm.v1.engine.llm_engine:LLMEngine.reset_prefix_cache",
        "reset_running_requests",
        "False",
        "after a sleep none run",
    ),
    (f"{LLM_ENGINE}.wake_up", "tags", "None", "all of the engine wakes"),
]


def library_of(packages: dict[str, Path]) -> Library:
    return Library(packages | {name: ROOT / name for name in OURS})


def installed() -> dict[str, Path]:
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    return {"vllm": Path(found.origin).parent}


@pytest.fixture(scope="module", params=["installed", "GPU wheel"])
def library(request: pytest.FixtureRequest) -> Library:
    if request.param == "installed":
        return library_of(installed())
    folder = os.environ.get("VLLM_GPU_WHEEL")
    if not folder:
        pytest.skip("vLLM's wheel for GPUs is not unpacked; `make wheel-check` downloads it and runs this test")
    assert (Path(folder) / "vllm" / "__init__.py").is_file(), folder
    return library_of({"vllm": Path(folder) / "vllm"})


def symbol(library: Library, path: str) -> Symbol:
    module, _, name = path.partition(":")
    owner, _, method = name.partition(".")
    found = library.find(module, owner)
    assert isinstance(found, Symbol) and isinstance(found.node, ast.ClassDef), f"no {path}"
    if not method:
        return found
    member = library.member(found, method)
    assert isinstance(member, tuple), f"no {path}"
    return Symbol(member[0].module, method, member[1])


def test_all_that_is_used_exists(library: Library) -> None:
    scans = {module: Uses(library, module, ("vllm",)) for package in OURS for module in modules_below(ROOT, package)}
    problems = [problem for scan in scans.values() for problem in scan.problems]
    assert problems == []
    # A scan that recognises nothing would find nothing.
    checked = {module: scan.checked for module, scan in scans.items() if scan.checked}
    assert checked["grpo.generator.engine"] > 25 and checked["grpo.generator.sampling"] > 12, checked
    assert checked["grpo.weights.gpu_engines"] > 15 and checked["grpo.weights.engines"] > 8, checked


def unknown_calls(library: Library, modules: list[str], extensions: list[Symbol]) -> tuple[list[str], set[str]]:
    """Calls by name of methods that neither vLLM's classes nor `extensions` have; and all names that are called."""
    workers, core = [symbol(library, path) for path in WORKERS], symbol(library, ENGINE_CORE)
    unknown, names = [], set()
    for module in modules:
        for line, function, name in remote_calls(library, module):
            owners = [core] if "utility" in function else workers
            ours = any(library.member(each, name) is not None for each in extensions)
            if not ours and any(library.member(owner, name) is None for owner in owners):
                unknown.append(f"{module}:{line}: no {name}")
            names.add(name)
    return unknown, names


def test_methods_that_are_called_by_name_exist(library: Library) -> None:
    unknown, names = unknown_calls(library, modules_below(ROOT, "grpo"), own_classes(library))
    assert unknown == []
    assert {"update_weights", "init_weight_transfer_engine", "finish_weight_update"} <= names


def test_a_planted_call_by_name_is_found(tmp_path: Path) -> None:
    """Where a class of ours extends vLLM's workers, its methods may be called too."""
    (tmp_path / "planted.py").write_text(
        "def f(engine):\n    engine.collective_rpc('start_weight_updates')\n    engine.collective_rpc('mine')\n"
        "    engine.call_utility('execute_dummy_batch')\n    engine.call_utility('nothing')\n"
        "class Extension:\n    def mine(self): ...\n"
    )
    (tmp_path / "__init__.py").touch()
    library = Library(installed() | {"ours": tmp_path})
    extension = library.find("ours.planted", "Extension")
    assert isinstance(extension, Symbol)
    unknown, _ = unknown_calls(library, ["ours.planted"], [extension])
    assert unknown == ["ours.planted:2: no start_weight_updates", "ours.planted:5: no nothing"]


def own_classes(library: Library) -> list[Symbol]:
    """Our classes that vLLM's processes may get: those of `grpo/generator`, without the generator that calls them."""
    found = []
    for module in modules_below(ROOT, "grpo/generator"):
        module = module.replace("/", ".")
        for name, node in library.names(module).items():
            if isinstance(node, ast.ClassDef) and (module, name) != ("grpo.generator.engine", "Generator"):
                found.append(Symbol(module, name, node))
    return found


@pytest.mark.parametrize(("path", "field", "expected", "reason"), DEFAULTS)
def test_defaults_are_those_that_the_code_relies_on(
    library: Library, path: str, field: str, expected: str, reason: str
) -> None:
    owner = symbol(library, path)
    found = default_of(owner.node, field) if isinstance(owner.node, Function) else library.default(owner, field)
    assert found == expected, f"{path}.{field}: {reason}"


PLANTED = {
    "from vllm import EngineArgz": "vllm has no EngineArgz",
    "from vllm.config import weight_transfers": "vllm.config has no weight_transfers",
    "import vllm.engine.nothing": "no module vllm.engine.nothing",
    "from vllm import EngineArgs\nEngineArgs(model='m', max_tokens=3)": "has no parameter max_tokens",
    "from vllm import SamplingParams\nSamplingParams(flat_logprob=True)": "has no parameter flat_logprob",
    "from vllm.sampling_params import RequestOutputKind\nRequestOutputKind.LAST": "has no LAST",
    "from vllm.v1.engine.llm_engine import LLMEngine\nLLMEngine.from_arguments()": "has no from_arguments",
    "from vllm.v1.engine.llm_engine import LLMEngine\nLLMEngine.from_engine_args()": "needs engine_args",
    "from vllm.v1.engine.llm_engine import LLMEngine\n"
    "class G:\n    def __init__(self, a):\n        self._e = LLMEngine.from_engine_args(a)\n"
    "    def f(self):\n        self._e.sleep(level=1, how='keep')": "has no parameter how",
    "from vllm import RequestOutput\ndef f(o: RequestOutput):\n    return [s.logprob for s in sorted(o.outputs)]": (
        "CompletionOutput of vllm.outputs has no logprob"
    ),
    "from vllm.distributed.weight_transfer.base import WeightTransferEngine\nclass E(WeightTransferEngine):\n"
    "    def shutdown(self): ...": "does not define the abstract finish_weight_update, init_transfer_engine",
    "from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine\n"
    "class E(NCCLWeightTransferEngine):\n    mine = 1\n    def f(self):\n"
    "        return self.mine, self.model, self.modell": "has no modell",
    "from vllm.distributed.utils import StatelessProcessGroup\nStatelessProcessGroup(0, 1)": "needs store",
    "from vllm.distributed.utils import StatelessProcessGroup\nStatelessProcessGroup(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)": (
        "arguments by position, got 10"
    ),
}


@pytest.mark.parametrize(("text", "told"), PLANTED.items(), ids=list(PLANTED.values()))
def test_a_planted_use_that_does_not_exist_is_found(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "planted.py").write_text(text)
    (tmp_path / "__init__.py").touch()
    scan = Uses(Library(installed() | {"ours": tmp_path}), "ours.planted", ("vllm",))
    assert len(scan.problems) == 1 and told in scan.problems[0], scan.problems
