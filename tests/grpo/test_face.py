"""`import grpo`: public names and their examples, docs/python.md, and the four packages beside a user's files."""

from __future__ import annotations

import doctest
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
from docs_pages import ROOT, blocks
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_run import write_fake_run
from fake_sampler import FakeSampler
from tiny_policy import PRINTABLE, make_tiny_policy

import grpo
import rewards
from grpo import package_finder
from grpo.config import DatasetConfig, TrainConfig
from grpo.data.rows import load_rows
from rewards import named_code
from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.verdict import Status


def test_importing_the_face_loads_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import grpo\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(' '.join(sorted(new - {'grpo'} - set(sys.stdlib_module_names))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_no_module_has_it() -> None:
    assert grpo.__all__ == sorted(grpo.__all__) and set(grpo.__all__) <= set(dir(grpo))
    assert sorted(name for names in grpo._MODULES.values() for name in names) == grpo.__all__
    for name in grpo.__all__:
        assert inspect.getdoc(getattr(grpo, name))
        # A module of this name would take the name's place when somebody imports the module.
        assert not (ROOT / "grpo" / name).exists() and not (ROOT / "grpo" / f"{name}.py").exists(), name
    assert grpo.build_verifier is rewards.build_verifier and grpo.Verdict is rewards.Verdict
    with pytest.raises(AttributeError, match=r"no attribute 'trian'; it has .*train"):
        grpo.trian  # type: ignore[attr-defined]  # noqa: B018


def test_types_and_data_files_are_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    command: Any = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}  # only what pyproject.toml names: the list of a source distribution is made by a build
    shipped = {file for name in command.packages for file in command.find_data_files(name, name.replace(".", "/"))}
    packages = [ROOT / name for name in package_finder.PACKAGES]
    there = {path for package in packages for path in package.rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT)) for path in there if path.suffix not in (".py", ".pyc")}
    assert {f"{name}/py.typed" for name in package_finder.PACKAGES} <= wanted
    # `make install` reads these two in a checkout.
    assert wanted - shipped == {
        "launch/overrides-cpu.txt",
        "launch/requirements-cpu.lock",
        "launch/requirements-gpu.lock",
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of the examples: configurations, a policy, questions and a run; engines are stand-ins."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    policy = make_tiny_policy(tmp_path / "runs" / "quickstart_sft" / "policy", PRINTABLE)
    kept = shutil.copytree(policy, tmp_path / "kept")
    (tmp_path / "runs" / "rlhf_quickstart_sft").symlink_to(tmp_path / "runs" / "quickstart_sft")
    write_fake_run(tmp_path / "runs" / "sums", steps=20)
    rows = [{"problem": "1+1=?", "answer": "2"}, {"problem": "2+1=?", "answer": "3"}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Learner(FakeLearner):
        def export(self, folder: str) -> None:
            shutil.copytree(kept, folder, dirs_exist_ok=True)

    class Cluster(FakeCluster):
        def __call__(self, settings: Any, plan: Any) -> FakeCluster:
            return FakeCluster(Learner(ranks=plan.learner_ranks), FakeGenerators(104))

    class Sampler(FakeSampler):
        def __enter__(self) -> Sampler:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.chdir(tmp_path)
    for loop in ("grpo.run.training", "grpo.fine_tuning"):
        monkeypatch.setattr(f"{loop}.Cluster", Cluster(Learner()))
    monkeypatch.setattr("grpo.evaluation.jobs.EngineSampler", Sampler(lambda question: f"{question.seed % 2 + 2}"))
    yield tmp_path


@pytest.mark.parametrize("name", grpo.__all__)
def test_the_example_of_each_public_name_runs_and_prints_nothing_else(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    thing = getattr(grpo, name)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(thing, name, module=False, globs={"grpo": grpo})
    assert example.examples, f"{name} has no example"
    told = io.StringIO()
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE).run(example, out=told.write)
    assert result.failed == 0, told.getvalue()
    assert capfd.readouterr().out == ""


def test_the_page_runs_from_top_to_bottom(folder: Path) -> None:
    for code in blocks("python.md", "python"):
        named = re.match(r"# (\w+\.py)\n", code)
        if named:
            (folder / named[1]).write_text(code)
    names: dict[str, Any] = {}
    for code in blocks("python.md", "python"):
        if not re.match(r"# \w+\.py\n", code):
            exec(compile(code, "docs/python.md", "exec"), names)
    assert names["run"].metrics.last_step() == 4 and names["verdict"].status is Status.CORRECT


def test_what_is_shown_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = grpo.load_config("configs/quickstart_sft.yaml", "sft.steps=1", "report.trackers=[]")
    assert isinstance(config, grpo.SftConfig)
    run = grpo.sft(config, show=True)
    shown = capsys.readouterr().out
    assert shown.startswith("SFT quickstart_sft: loads its libraries") and "reading the data" in shown
    assert "1 steps" in str(run.summary) and str(Path("runs", "quickstart_sft", "report.html")) in str(run.summary)


def test_mistakes_are_told_with_their_remedy(folder: Path) -> None:
    config = grpo.load_config("configs/quickstart_sft.yaml")
    with pytest.raises(ValueError, match=r"train takes a TrainConfig, got SftConfig; .*load_config, or call sft"):
        grpo.train(config)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"runs/nothing holds no run.*give the folder that run\.folder named"):
        grpo.read_run("runs/nothing")
    run = grpo.read_run("runs/sums")
    with pytest.raises(ValueError, match="no rollouts of step 7; the stored steps are: 1, 10, 20"):
        run.rollouts(7)
    with pytest.raises(ValueError, match="has no policy yet"):
        run.policy  # noqa: B018
    with pytest.raises(ValueError, match="no task 'math50'; did you mean 'math500'"):
        grpo.evaluate("runs/quickstart_sft", "math50")


# A user's files with the names of our packages: each ends the program that imports it.
HIDING = ("grpo/__init__.py", "launch.py", "rewards.py", "sandbox/__init__.py")


@pytest.fixture
def user(tmp_path: Path) -> Path:
    for name in HIDING:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the file of the user')\n")
    return tmp_path


def test_a_script_beside_such_files_finds_the_packages(user: Path) -> None:
    (user / "grpo" / "__init__.py").unlink()
    program = (
        "import grpo, launch, rewards, sandbox\n"
        "print(grpo.build_verifier('numeric')('42', '42', {}).status.value)\n"
        "print(launch.__file__, rewards.__file__, sandbox.__file__)"
    )
    (user / "script.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": f"{user}{os.pathsep}{ROOT}"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True, check=False)
    files = [str(ROOT / name / "__init__.py") for name in ("launch", "rewards", "sandbox")]
    assert done.stdout.split() == ["correct", *files], done.stderr
    (user / "rewards.py").write_text("")
    (user / "script.py").write_text("import rewards\nimport grpo\n")
    done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True, check=False)
    assert f"ImportError: 'rewards' is a package of VeriGRPO, and {user}/rewards.py was imported" in done.stderr
    assert "rename that file" in done.stderr


def test_a_python_of_ours_finds_the_packages(user: Path) -> None:
    command = package_finder.python_command(
        "import grpo, rewards, sys; print(grpo.__file__, rewards.__file__, sys.argv)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*command, "word"], cwd=user, env=environment, capture_output=True, text=True, check=False)
    files = [str(ROOT / name / "__init__.py") for name in ("grpo", "rewards")]
    assert done.stdout.split() == [*files, "['-c',", "'word']"], done.stderr


def test_workers_of_ray_search_for_the_packages_first(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.core.generated.common_pb2 import JobConfig

    from grpo.cluster.session import _common

    assert "job_config" not in _common()
    monkeypatch.chdir(user)
    job = _common()["job_config"]
    # What `ray.init` adds in the driver; a worker inserts each in turn at the front of its search path.
    job._py_driver_sys_path.extend([str(user)])
    assert list(JobConfig.FromString(job._serialize()).py_driver_sys_path) == [str(user), str(ROOT)]


def test_a_verifier_s_process_finds_the_packages(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(user)
    (user / "mine.py").write_text(
        "def check(completion, reference):\n    import sandbox.types, launch\n    return True\n"
    )
    with VerifierPool([VerifierSpec("it", f"{user}/mine.py:check")], workers=1) as pool:
        verdict = pool.submit("it", "", "", {}).result(30)
    assert verdict.status is Status.CORRECT, verdict.reason


def test_the_names_of_the_packages_are_the_same_everywhere() -> None:
    assert package_finder.PACKAGES == named_code.PACKAGES


@pytest.mark.parametrize(
    ("use", "renamed"),
    [
        ("rewards:mine", "rewards.py"),
        ("launch.thing:mine", "launch"),
        ("grpo.thing.mine", "grpo"),
        ("{folder}/check.py:check", "rewards.py"),
    ],
)
def test_a_clash_of_names_is_told_with_the_remedy(
    use: str, renamed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rewards.py", "launch/thing.py", "grpo/thing.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            "def mine(completion='', reference=''):\n    yield {'prompt': 'a', 'answer': 'b'}\n"
        )
    (tmp_path / "check.py").write_text("from rewards import mine as check\n")
    if use.startswith("{"):
        use = use.format(folder=tmp_path)
    else:
        monkeypatch.chdir(tmp_path)
        generator = use if ":" in use else "grpo.thing:mine"
        told = rf"data.generator={re.escape(generator)}: .*rename {tmp_path}/{renamed}, "
        with pytest.raises(ValueError, match=told):
            load_rows(DatasetConfig(generator=generator))
    with pytest.raises(
        ValueError, match=rf"is a package of VeriGRPO, which hides {tmp_path}/.*rename {tmp_path}/{renamed}, "
    ):
        grpo.build_verifier(use)
    # Without such a file there is nothing to rename.
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=r"rewards has no 'correkt'; did you mean 'correct'"):
        grpo.build_verifier("rewards:correkt")


def test_the_schema_of_a_config_is_seen_from_its_keys() -> None:
    assert isinstance(grpo.load_config(ROOT / "configs" / "quickstart.yaml"), TrainConfig)
