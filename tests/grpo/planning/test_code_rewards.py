"""What a config with the code verifier is told before anything is started."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from grpo.config import TrainConfig, VerifierConfig
from grpo.config.exposure import exposed_paths
from grpo.config.file import load
from grpo.planning.isolation import isolation_table
from rewards.deadlines import deadline_problems
from rewards.verifiers.code import CodeVerifier
from sandbox import Isolation, IsolationLevel, Layer, MissingLayer
from sandbox.outside.worker import Worker

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "code_quickstart.yaml"


def verifier(use: str = "code", **options: Any) -> VerifierConfig:
    return VerifierConfig(name="tests", use=use, options=options)


@pytest.mark.parametrize("use", ["code", "rewards.verifiers.code:CodeVerifier"])
def test_a_deadline_must_leave_programs_their_time(use: str) -> None:
    needed = CodeVerifier(program_s=4).deadline_s
    assert deadline_problems([verifier(use, program_s=4)], needed) == []
    (problem,) = deadline_problems([verifier(use, program_s=4)], needed - 0.1)
    assert "verification.deadline_s" in problem and f"{needed:g} or more" in problem
    assert deadline_problems([verifier("math")], 0.1) == []


def test_the_config_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="deadline_s=3 could end the verifier 'tests' before"):
        load(TrainConfig, CONFIG, ["verification.deadline_s=3"])
    load(TrainConfig, CONFIG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "ada"}, "verifiers: tests: code: language must be one of"),
        ({"seconds": 3}, "verifiers: tests: .*unexpected keyword argument 'seconds'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str) -> None:
    (problem,) = deadline_problems([verifier(**options)], 100)
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def shown(table: Table) -> str:
    output = io.StringIO()
    Console(width=300, file=output).print(table)
    return output.getvalue()


def test_the_isolation_in_force_is_shown() -> None:
    assert isolation_table([verifier("math")], Table()) is None
    table = isolation_table([verifier(level="none")], Table("", ""))
    assert table is not None
    assert "'tests' needs at least none" in shown(table)
    assert "resource limits" in shown(table)


def test_too_little_isolation_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Worker._start

    def weak(self: Worker) -> None:
        start(self)
        missing = (MissingLayer(Layer.LANDLOCK, "no such call", "boot a newer kernel"),)
        self.isolation = Isolation(IsolationLevel.LIMITED, (Layer.RESOURCE_LIMITS,), missing)

    monkeypatch.setattr(Worker, "_start", weak)
    with pytest.raises(ValueError, match=r"verifier 'tests': .*need isolation confined.*gives limited.*newer kernel"):
        isolation_table([verifier()], Table("", ""))
    table = isolation_table([verifier(level="limited")], Table("", ""))
    assert table is not None and "boot a newer kernel" in shown(table)


def test_data_and_run_folders_that_programs_could_read_are_refused() -> None:
    for setting, path, refused in (
        ("run.folder", "/usr/local/lib/runs/one", True),
        ("data.path", "/usr/lib/tests.jsonl", True),
        ("run.folder", "/usr/src/app/runs/one", False),
        ("data.path", "/srv/tests.jsonl", False),
    ):
        overrides = [f"{setting}={path}"] + (["data.generator=null"] if setting == "data.path" else [])
        try:
            load(TrainConfig, CONFIG, overrides)
            told = ""
        except ValueError as problem:
            told = str(problem)
        assert (f"{setting}={path} lies where the programs that" in told) is refused, told
    assert exposed_paths([verifier("math")], {"run.folder": "/usr/lib/x"}, ["my.py:python"]) == []
    (problem,) = exposed_paths([verifier("math")], {"run.folder": "/usr/lib/x"}, ["my.py:f", "python"])
    assert "run.folder=/usr/lib/x lies where the programs that 'python' runs can read it" in problem
    assert exposed_paths([verifier(level="filtered")], {"run.folder": "/usr/lib/x"}) == []
