"""Every command of README and docs/ is run as it stands there, in a folder with what the page says one has.

Long runs are cut short by an override after the page's own words, and data of the hub comes from a small file of the
same columns. Engines are stand-ins here: what starts real ones is in `ELSEWHERE`, with the test that runs it, and so is
what this machine cannot run.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from click.testing import Result
from docs_pages import PAGES, ROOT, block, commands
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_hub import gsm8k_rows, stand_in
from fake_sampler import FakeSampler
from page_stand_ins import Local, looked_at
from simulated_run import write_run
from tiny_policy import PRINTABLE, make_tiny_policy
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.evaluation.questions import Question
from launch import attempt

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

QUICK = "configs/quickstart.yaml"
# What a page writes where a reader puts something of their own.
OWN = {
    "CONFIG": QUICK,
    "MODEL": "runs/quickstart",
    "RUN": "runs/quickstart",
    "RUN...": "runs/quickstart",
    "A": "evals/before",
    "B": "evals/after",
    "...": QUICK,
}
TARGETS = "local|slurm|kuberay|ray"
LAUNCH = ("launch.nodes=1", "launch.gpus_per_node=0", "launch.cpus_per_node=8", "launch.storage=/")
# What Kubernetes needs besides.
KUBERNETES = ("launch.image=x/y:1", "launch.kuberay.storage_claim=shared", "launch.memory_gib_per_node=8")
BRIEF = ("--max-tokens", "64")
CHECKED = ("policy.path=runs/quickstart_sft/policy", "--gold-limit", "20")
FEW_PAIRS = ("data.options.count=300", "data.validation=50")
SWEEP = ("--steps", "2")
# A page's command, and what is added to it here.
HERE: dict[str, tuple[str, ...]] = {
    "grpo check CONFIG [KEY=VALUE]...": CHECKED,
    "grpo check CONFIG": CHECKED,
    f"grpo launch {TARGETS} CONFIG [KEY=VALUE]... [--dry-run]": LAUNCH,
    "grpo launch TARGET CONFIG ...": (*LAUNCH, "--dry-run"),
    "grpo launch slurm|kuberay|ray|local CONFIG": (*LAUNCH, "--dry-run"),
    "grpo launch slurm CONFIG": (*LAUNCH, "--dry-run"),
    "grpo launch kuberay CONFIG": (*LAUNCH, "--dry-run"),
    "grpo launch ray CONFIG": (*LAUNCH, "--dry-run"),
    "grpo train CONFIG [KEY=VALUE]...": ("run.folder=runs/first", "train.steps=1"),
    "grpo train configs/quickstart.yaml resume=auto train.steps=80": ("train.steps=3",),
    "grpo train configs/quickstart.yaml train.keep_best=eval/accuracy": ("run.folder=runs/best", "train.steps=1"),
    "grpo train CONFIG resume=auto": ("train.steps=3",),
    "grpo train ... resume=auto": ("train.steps=3",),
    "grpo train CONFIG learner.lora.rank=16": ("run.folder=runs/lora", "train.steps=1"),
    "grpo train configs/gsm8k_cpu.yaml data.hub=null data.subset=null data.path=gsm8k_train.jsonl": (
        "policy.path=runs/quickstart_sft/policy",
        "train.steps=1",
        "learner.ranks=2",
    ),
    "grpo view RUN...": ("--port", "0"),
    "grpo view runs/quickstart": ("--port", "0"),
    "grpo view runs/seed_0 runs/seed_1 runs/seed_2": ("--port", "0"),
    "grpo view runs/quickstart --export report.html": (),
    "grpo view runs/seed_0 runs/seed_1 --png figures": (),
    "grpo audit RUN": ("--limit", "20"),
    "grpo eval MODEL --task math500": (*BRIEF, "--data", "math500.jsonl", "--out", "evals/brief"),
    "grpo eval runs/quickstart --task math500 --k 8 --temperature 0.6": (),
    "grpo eval http://localhost:8000/v1 --task aime24 --k 16 --seeds 0,1,2": (),
    "grpo eval MODEL --task genes.yaml": BRIEF,
    "grpo eval compare evals/before evals/after": (),
    "grpo eval compare A B": ("--out", "compared.json"),
    "grpo eval tasks": (),
    "grpo eval tasks --long": (),
    "grpo eval run --help": (),
    "grpo simulate CONFIG --from RUN": ("--from", "runs/math", *SWEEP),
    "grpo simulate configs/math_8gpu.yaml --lengths lognormal:median=1200,sigma=0.9": SWEEP,
    "grpo simulate configs/math_8gpu.yaml --from runs/math": SWEEP,
    "grpo simulate configs/math_8gpu.yaml --from runs/math --gpus 64 --lag 0,1,2,4,8 --all-splits --json": SWEEP,
    "grpo simulate CONFIG [key=value ...]": ("--lengths", "constant:tokens=50", *SWEEP),
    "grpo simulate configs/math_8gpu.yaml --lengths lognormal:median=1200,sigma=0.9 --gpus 8,64,1000": SWEEP,
    "grpo check configs/dpo_quickstart.yaml": (),
    "grpo dpo configs/dpo_quickstart.yaml": ("dpo.steps=2", "data.validation=50"),
    "grpo check configs/rlhf_quickstart_reward.yaml": ("policy.path=runs/quickstart_sft/policy", *FEW_PAIRS),
    "grpo reward configs/rlhf_quickstart_reward.yaml": (
        "policy.path=runs/quickstart_sft/policy",
        "reward.steps=2",
        *FEW_PAIRS,
    ),
    "grpo config [KEY]": (),
    "grpo config rollout": (),
    "grpo config --markdown": (),
    "grpo config --migrating": (),
    "grpo config warm": (),
    "grpo check CONFIG --full": CHECKED,
    "grpo check configs/gsm8k.yaml policy.path=Qwen/Qwen3-1.7B-Base generator.gpu_memory_share=0.4": (),
    "grpo check configs/gsm8k.yaml": (),
    "grpo check configs/gsm8k.yaml --strict": (),
    "grpo view runs/brief": ("--port", "0"),
    "grpo view runs/gsm8k runs/rate_3e-6": ("--port", "0"),
    "grpo eval deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --task math500 --like deepseek-r1 --k 4 --out "
    "evals/published": (),
    "grpo eval runs/gsm8k --task math500 --like deepseek-r1 --k 4 --out evals/trained": (),
    "grpo eval compare evals/published evals/trained": (),
    "grpo eval http://localhost:8000/v1 --task aime24 --like qwen3-thinking --out evals/served "
    '"endpoint.extra_body={chat_template_kwargs: {enable_thinking: true}}"': (),
    "grpo eval runs/gsm8k --task math500 --out evals/own": (),
    "grpo eval http://localhost:8000/v1 --task math500 --k 4 --out evals/server": (),
}
REAL = "tests/engines/test_train_runs.py"
GPU = "needs a GPU; tests/docs/test_pages.py loads it"
PROGRAMS = "tests/engines/test_code_quickstart.py"
TRIAL = "tests/grpo/planning/test_trial_conversation.py"
JUDGES = "tests/docs/test_judges_page.py"
CONVERSATIONS = "tests/engines/test_conversation_runs.py"
# A page's command that is not run here: where it is, or why it is nowhere.
ELSEWHERE = {
    "grpo sft   CONFIG [KEY=VALUE]...": f"{REAL}: with configs/quickstart_sft.yaml",
    "grpo sft configs/gsm8k_cpu_sft.yaml data.hub=null data.subset=null data.path=gsm8k_train.jsonl": f"{REAL}: "
    "with configs/quickstart_sft.yaml",
    "grpo dpo   CONFIG [KEY=VALUE]...": "with configs/dpo_quickstart.yaml, above",
    "grpo reward CONFIG [KEY=VALUE]...": "with configs/rlhf_quickstart_reward.yaml, above",
    "grpo reward mine_reward.yaml --evaluate --by subset policy.path=runs/mine_reward/policy "
    "data.path=rewardbench.jsonl": "tests/grpo/run/test_reward_evaluation.py",
    "grpo sft configs/rlhf_quickstart_sft.yaml": f"{REAL}: with configs/quickstart_sft.yaml",
    "grpo dpo configs/rlhf_quickstart_dpo.yaml": "with configs/dpo_quickstart.yaml, above",
    "grpo train configs/rlhf_quickstart.yaml": f"{REAL}: with configs/quickstart.yaml",
    "grpo train configs/process_quickstart.yaml": f"{REAL}: with configs/quickstart.yaml",
    "grpo sft configs/distill_quickstart_sft.yaml": f"{REAL}: with configs/quickstart_sft.yaml",
    "grpo train configs/distill_quickstart.yaml": f"{REAL}: with configs/quickstart.yaml",
    "grpo sft mine_sft.yaml": REAL,
    "grpo check configs/judge_quickstart.yaml": JUDGES,
    "grpo train configs/judge_quickstart.yaml": JUDGES,
    "grpo label RUN": f"{JUDGES}: with a name",
    "grpo label RUN --judge CONFIG": JUDGES,
    "grpo label runs/judge_quickstart --labeller ann": JUDGES,
    "grpo label runs/judge_quickstart --judge configs/judge_quickstart/judge.yaml": JUDGES,
    "grpo audit RUN --labels FILE": JUDGES,
    "grpo audit runs/judge_quickstart --labels runs/judge_quickstart/labels.jsonl": JUDGES,
    "grpo audit runs/judge_quickstart --labels runs/judge_quickstart/labels.jsonl --judge "
    "configs/judge_quickstart/judge.yaml": JUDGES,
    "grpo critique FILE --critic CONFIG --out ROWS": JUDGES,
    "grpo critique runs/judge_quickstart --critic configs/judge_quickstart/critic.yaml --out runs/critiques.jsonl "
    "--limit 200": JUDGES,
    "grpo train mine.yaml": REAL,
    "grpo config num_generations": "tests/grpo/cli/test_cli.py: it names our key, and ends with exit status 2",
    "grpo push RUN OWNER/NAME": "needs the hub; tests/grpo/policy/test_push.py: with a stand-in for the hub",
    "grpo check mine.yaml": "tests/docs/test_pages.py",
    "grpo profile CONFIG": f"{REAL}: with mine.yaml",
    "grpo profile CONFIG [KEY=VALUE]... # a few steps: where the time goes, by phase and operator, and what to try "
    "next": f"{REAL}: with mine.yaml",
    "grpo check CONFIG --cluster": "tests/grpo/cluster/test_preflight.py, and its probes in tests/engines/test_ray.py",
    "grpo train configs/gsm8k.yaml": GPU,
    "grpo train configs/math_8gpu.yaml": "needs the hub and eight GPUs; tests/docs/test_pages.py loads it",
    "grpo check configs/gsm8k.yaml --cluster": "tests/grpo/cluster/test_preflight.py: needs a GPU with this config",
    "grpo train configs/gsm8k.yaml run.folder=runs/brief train.steps=5 evaluation.every=5": GPU,
    "grpo train configs/gsm8k.yaml run.folder=runs/rate_3e-6 learner.learning_rate=3e-6": GPU,
    "grpo profile configs/gsm8k.yaml": GPU,
    "grpo push runs/gsm8k me/gsm8k-1.5b": "needs the hub; tests/grpo/policy/test_push.py: with a stand-in for the hub",
    "grpo sft configs/quickstart_sft.yaml": REAL,
    "grpo train configs/quickstart.yaml": REAL,
    "grpo sft configs/code_quickstart_sft.yaml": PROGRAMS,
    "grpo train configs/code_quickstart.yaml": PROGRAMS,
    "grpo sft configs/tools_quickstart_sft.yaml": CONVERSATIONS,
    "grpo check configs/tools_quickstart.yaml": f"{TRIAL}: with another policy",
    "grpo train configs/tools_quickstart.yaml": CONVERSATIONS,
    "grpo eval runs/tools_quickstart --task sums.yaml": CONVERSATIONS,
    "grpo train configs/agent_quickstart.yaml": f"{TRIAL}: its program plays, with a stand-in for the policy",
    "grpo sft configs/maze_quickstart_sft.yaml": f"{CONVERSATIONS}: with configs/tools_quickstart_sft.yaml",
    "grpo train configs/maze_quickstart.yaml": f"{CONVERSATIONS}: with configs/tools_quickstart.yaml",
    "grpo sft configs/gsm8k_cpu_sft.yaml": "needs the hub; the command with a local copy is above",
    "grpo train configs/gsm8k_cpu.yaml": "needs the hub; the command with a local copy is above",
    "grpo eval Qwen/Qwen3-1.7B --task gsm8k --task humaneval --out evals/qwen3": "needs the hub: parsed only",
}


def is_typed(command: str) -> bool:
    """False for the mere name of a command in a sentence."""
    return command not in ("grpo eval compare", "grpo eval run") and len(command.split()) > 2


def typed(command: str) -> Iterator[list[str]]:
    """What a reader types, once for each of its alternatives."""
    told = command.replace("TARGET CONFIG ...", f"{TARGETS} CONFIG").replace("[--dry-run]", "--dry-run")
    words = [OWN.get(word, word) for word in shlex.split(re.sub(r"\[[^\]]*\](\.\.\.)?", "", told))[1:]]
    yield from map(list, itertools.product(*(word.split("|") for word in words)))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages say a reader has, and in it the shell; engines and servers are stand-ins."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    policy = make_tiny_policy(folder / "runs" / "quickstart_sft" / "policy", PRINTABLE)
    (folder / "runs" / "math").mkdir()
    write_run(folder / "runs" / "math")
    (folder / "math500.jsonl").write_text(
        rows({"problem": "1+1=?", "answer": "2"}, {"problem": "2+1=?", "answer": "3"})
    )
    published = [
        *({"problem": f"{n}+1=?", "answer": str(n + 1)} for n in range(3)),
        {"problem": "1+" * 600 + "1=?", "answer": "601"},
    ]
    (folder / "gsm8k_train.jsonl").write_text(rows(*gsm8k_rows(8)))
    (folder / "genes.yaml").write_text(block("evaluation.md", "yaml", "# genes.yaml"))
    asked = {"question": "the guardian of the genome", "symbol": "TP53", "organism": "human"}
    (folder / "genes.jsonl").write_text(
        rows(asked, {**asked, "question": "the one of retinoblastoma", "symbol": "RB1"})
    )
    (folder / "my_verifiers.py").write_text(block("verifiers.md", "python", "def gene("))

    class Learner(FakeLearner):
        def export(self, folder: str) -> None:
            shutil.copytree(policy, folder, dirs_exist_ok=True)

    class Cluster(FakeCluster):
        def __call__(self, settings: Any, plan: Any) -> FakeCluster:
            tokens = load(TrainConfig, ROOT / QUICK).max_sequence_tokens
            return FakeCluster(Learner(ranks=2), FakeGenerators(tokens))

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        # No test asks the hub. Its rows have these columns; the last of MATH-500 exceeds the policy's context.
        sets = {"HuggingFaceH4/MATH-500": published, "HuggingFaceH4/aime_2024": published[:2]}
        stand_in(patched, folder / "hub", {**sets, "openai/gsm8k": gsm8k_rows(80)})
        for loop in ("grpo.run.training", "grpo.fine_tuning"):
            patched.setattr(f"{loop}.Cluster", Cluster(Learner()))
        patched.setattr("grpo.evaluation.jobs.EngineSampler", Local(said))
        patched.setattr("grpo.evaluation.jobs.EndpointSampler", FakeSampler(said))
        patched.setattr(uvicorn.Server, "run", looked_at(uvicorn.Server.run))
        done = run("train", QUICK, "train.steps=2", "evaluation.every=2", "report.trackers=[]")
        assert done.exit_code == 0, done.output
        for name in ("seed_0", "seed_1", "seed_2", "brief", "gsm8k", "rate_3e-6"):
            shutil.copytree(folder / "runs" / "quickstart", folder / "runs" / name)
        for name in ("before", "after"):
            words = ("--task", "math500", "--data", "math500.jsonl", "--out", f"evals/{name}", "--k", "2", *BRIEF)
            assert run("eval", "runs/quickstart", *words).exit_code == 0
        yield folder


def rows(*found: dict[str, str]) -> str:
    return "".join(json.dumps(row) + "\n" for row in found)


def said(question: Question) -> str:
    return "It is \\boxed{2}, or TP53" if question.seed % 3 else "\\boxed{3}"


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, words)


# What a command prints or leaves, where "it ended well" would say little.
SAYS = {
    "grpo view RUN...": "looked at quickstart",
    "grpo view runs/quickstart": "looked at quickstart",
    "grpo view runs/seed_0 runs/seed_1 runs/seed_2": "looked at seed_0 seed_1 seed_2",
    "grpo train configs/quickstart.yaml resume=auto train.steps=80": "quickstart",
    "grpo check CONFIG": "20 gold answers",
    "grpo audit RUN": "decided by both",
    "grpo eval MODEL --task math500": "pass@",
    "grpo eval runs/quickstart --task math500 --k 8 --temperature 0.6": "problems fill it with their prompt",
    "grpo eval MODEL --task genes.yaml": "genes",
    "grpo eval http://localhost:8000/v1 --task aime24 --like qwen3-thinking --out evals/served "
    '"endpoint.extra_body={chat_template_kwargs: {enable_thinking: true}}"': "pass@64",
    "grpo eval http://localhost:8000/v1 --task aime24 --k 16 --seeds 0,1,2": "maj@",
    "grpo eval compare A B": "shared problems",
    "grpo eval tasks": "--like deepseek-r1",
    "grpo eval tasks --long": "amc23: The 83 problems",
    "grpo check configs/gsm8k.yaml policy.path=Qwen/Qwen3-1.7B-Base generator.gpu_memory_share=0.4": "34.56 GiB",
    "grpo check configs/gsm8k.yaml --strict": "160 of 160 gold answers",
    "grpo simulate CONFIG --from RUN": "GPUs",
    "grpo check configs/dpo_quickstart.yaml": "first comparison, as the policy reads it",
    "grpo config rollout": "max_policy_lag",
}
LEAVES = {
    "grpo train configs/quickstart.yaml train.keep_best=eval/accuracy": "runs/best/best/step_000000/policy/config.json",
    "grpo view runs/quickstart --export report.html": "report.html",
    "grpo view runs/seed_0 runs/seed_1 --png figures": "figures/overview.png",
    "grpo eval compare A B": "compared.json",
    "grpo audit RUN": "runs/quickstart/audit.jsonl",
    "grpo dpo configs/dpo_quickstart.yaml": "runs/dpo_quickstart/policy/config.json",
    "grpo reward configs/rlhf_quickstart_reward.yaml": "runs/rlhf_quickstart_reward/policy/reward_model.json",
    "grpo train CONFIG learner.lora.rank=16": "runs/lora/report.html",
}


def test_every_command_of_the_pages_is_run_somewhere() -> None:
    found = {command for _, command in commands() if is_typed(command)}
    assert found == HERE.keys() | ELSEWHERE.keys()
    assert not HERE.keys() & ELSEWHERE.keys() and SAYS.keys() | LEAVES.keys() <= HERE.keys()
    for where in ELSEWHERE.values():
        for file in re.findall(r"tests/\w+/\w+\.py", where):
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("command", HERE)
def test_it_runs_as_it_stands_there(command: str, reader: Path) -> None:
    if command.startswith("grpo audit"):
        pytest.importorskip("math_verify", reason="the extra `audit` is not installed")
    if "lora" in command:
        pytest.importorskip("peft", reason="the extra `lora` is not installed")
    for words in typed(command):
        done = run(*words, *HERE[command], *(KUBERNETES if "kuberay" in words else ()))
        assert done.exit_code == 0, (words, done.output[-3000:])
        assert SAYS.get(command, "") in done.output
    assert (reader / LEAVES.get(command, "")).exists()


def test_the_printed_manifest_trains_to_its_end(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--dry-run` prints is all that a pod has: its configuration, and the program that the Ray job starts."""
    words = (*LAUNCH, *KUBERNETES, f"run.folder={reader / 'runs' / 'pods'}", "train.steps=1", "--dry-run")
    printed = run("launch", "kuberay", QUICK, *words)
    config_map, ray_job = yaml.safe_load_all(printed.stdout)
    mounted = reader / "mounted.yaml"
    mounted.write_text(config_map["data"]["config.yaml"])
    *python, command, config = shlex.split(ray_job["spec"]["entrypoint"])
    assert python == ["python", "-P", "-m", "launch.attempt"] and Path(config).name == "config.yaml"
    monkeypatch.setattr(attempt, "run", lambda command, path: run(command, path, "report.trackers=[]").exit_code)
    # Nothing is in this folder, as in a pod's.
    (reader / "elsewhere").mkdir()
    monkeypatch.chdir(reader / "elsewhere")
    assert attempt.main([command, str(mounted)]) == 0
    assert len((reader / "runs" / "pods" / "metrics.jsonl").read_text().splitlines()) == 2
    # A second attempt goes on from the checkpoint, and has nothing to do.
    assert attempt.main([command, str(mounted)]) == 0


def test_the_sandbox_s_own_commands_run(tmp_path: Path) -> None:
    # `doctor` runs in tests/sandbox/test_chaos.py.
    (tmp_path / "program.py").write_text("print(6 * 7)")
    speed = ("tests/bench/sandbox_speed.py", "--measure", "1", "--seconds", "0.05")
    for words in (("-m", "sandbox", "run", str(tmp_path / "program.py")), speed):
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_scripts_that_the_pages_name_are_there() -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {name for page in pages for name in re.findall(r"tests/bench/\w+\.py", page)}
    assert len(named) > 8
    for name in sorted(named):
        assert (ROOT / name).is_file(), name
