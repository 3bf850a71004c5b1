"""The pages for newcomers: their commands parse, their configurations load, their examples behave."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docs_pages import PAGES, ROOT, block, commands, unpack
from row_shapes import ALL_SHAPES
from tiny_policy import PRINTABLE, make_tiny_policy
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import DatasetConfig, SftConfig, TrainConfig
from grpo.config.file import load
from grpo.config.inputs import dataset_problems
from grpo.jobs import load_config

# Keys of data that a reader chooses: the place of the rows, and the words around the question.
PLACES = {"path", "hub", "subset", "split", "template"}
# What the pages write where a reader puts something of their own.
ALTERNATIVES = re.compile(r"\S+\|\S+")
OPTIONAL = re.compile(r"\[[^\]]*\]\.*|\.\.\.")


def parsed(command: str) -> tuple[str, list[str]]:
    """The subcommand and the words after it, once typer has taken them; it raises on what there is not."""
    # What is in brackets may be left out; of alternatives the first is as good as any; a redirection is the shell's.
    plain = OPTIONAL.sub("", command).removesuffix(" --help").split(" > ")[0].replace("TARGET", "local|slurm")
    words = [word.split("|")[0] if ALTERNATIVES.fullmatch(word) else word for word in shlex.split(plain)[1:]]
    found: Any = typer.main.get_command(app)
    name, rest, context = "grpo", words, typer.Context(found)
    while isinstance(found, TyperGroup) and rest:
        # `grpo eval MODEL` is short for `grpo eval run MODEL`.
        rest = ["run", *rest] if "run" in found.commands and rest[0] not in found.commands else rest
        name, found, rest = found.resolve_command(context, rest)
        context = typer.Context(found, parent=context, info_name=name)
    if rest:
        found.make_context(name, list(rest), parent=context.parent)
    return name, rest


def test_the_pages_are_all_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if f"]({page.name})" not in index]
    assert missing == ["README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, target


def test_every_command_is_one_that_there_is() -> None:
    found = list(commands())
    assert len(found) > 30
    for page, command in found:
        try:
            parsed(command)
        except TyperException as failure:
            pytest.fail(f"{page}: `{command}`: {failure}")


def test_a_command_that_is_not_there_would_be_noticed() -> None:
    with pytest.raises(TyperException):
        parsed("grpo trian configs/quickstart.yaml")
    with pytest.raises(TyperException):
        parsed("grpo check configs/quickstart.yaml --clutser")


def test_commands_with_a_configuration_of_ours_load_it_with_their_overrides() -> None:
    tried = 0
    for _, command in commands():
        name, words = parsed(command)
        config = next((word for word in words if word.startswith("configs/")), None)
        if config and name in ("train", "sft", "dpo", "reward", "check", "profile"):
            overrides = [word for word in words[words.index(config) + 1 :] if "=" in word and not word.startswith("-")]
            load_config(ROOT / config, *overrides)
            tried += 1
    assert tried >= 2


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of docs/data.md, and in it the shell."""
    unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    make_tiny_policy(tmp_path / "policy", PRINTABLE)
    return tmp_path


def test_the_run_on_ones_own_file_passes_its_check(newcomer: Path) -> None:
    checked = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["check", "mine.yaml", "policy.path=policy", "--strict"])
    assert checked.exit_code == 0, checked.output
    # The first prompt as the policy reads it.
    assert "Put the final number inside \\boxed{}." in checked.output


@pytest.mark.parametrize(
    "section", ["hub: openai", "options: {count: 1000}", "count: 200", "validation: 200", "ratio: 2"]
)
def test_the_sections_of_the_data_page_fit_its_configuration(newcomer: Path, section: str) -> None:
    whole = yaml.safe_load((newcomer / "mine.yaml").read_text()) | yaml.safe_load(block("data.md", "yaml", section))
    (newcomer / "other.yaml").write_text(yaml.safe_dump(whole))
    load(TrainConfig, newcomer / "other.yaml")


def test_the_check_shows_each_source_of_the_data_page(newcomer: Path) -> None:
    worked = [{"question": f"What is {n}+{n}?", "answer": f"twice #### {2 * n}"} for n in range(40)]
    boxed = [{"problem": f"What is {n}-1?", "solution": f"so \\boxed{{{n - 1}}}"} for n in range(20)]
    for name, rows in (("gsm8k", [*worked, *worked[:20]]), ("math", boxed)):
        (newcomer / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = yaml.safe_load((newcomer / "mine.yaml").read_text()) | yaml.safe_load(block("data.md", "yaml", "ratio: 2"))
    whole["data"]["validation"] = 0.25
    (newcomer / "other.yaml").write_text(yaml.safe_dump(whole))
    check = ["check", "other.yaml", "policy.path=policy", "--strict"]
    checked = CliRunner(env={"COLUMNS": "300"}).invoke(app, check)
    assert checked.exit_code == 0, checked.output
    for told in (
        r"gsm8k training +\d\d prompts; 0 too long and left out; ratio 2, 66.7% of a run's prompts",
        r"math training +15 prompts; 0 too long and left out; ratio 1, 33.3% of a run's prompts",
        r"gsm8k held-out +10 prompts",
        r"gsm8k training: 10 questions are held out for the evaluation \(data\.validation\); \d+ rows repeat",
        r"20 of 60 rows of data\.sources\.gsm8k repeat the question of an earlier row",
        r"first math training prompt, as the policy reads it",
        r"answer on gsm8k: \d\d of \d\d gold answers are `correct`",
        r"answer on math: 20 of 20 gold answers are `correct`",
    ):
        assert re.search(told, checked.output), f"{told} in {checked.output}"
    # A source whose references are wrong is not hidden by another whose references are right.
    other = [f"data.sources.math.{setting}" for setting in ("reference_boxed=false", "reference=problem")]
    wrong = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*check, *other])
    assert wrong.exit_code == 1 and "a run would not start on these data" in wrong.output, wrong.output
    assert "verifier 'answer on math'" in wrong.output


def test_the_settings_of_published_rows_are_valid() -> None:
    settings = re.findall(r"`(data: \{.*?\})`", (ROOT / "docs" / "data.md").read_text())
    assert len(settings) >= 21
    shapes = ALL_SHAPES.values()
    tested = [DatasetConfig.model_validate({"path": "x", **shape.keys}).model_dump(exclude=PLACES) for shape in shapes]
    for setting in settings:
        source = DatasetConfig.model_validate(yaml.safe_load(setting)["data"])
        assert dataset_problems("data", source) == [], setting
        # The tests of rows use the same keys. Options in columns, and messages, have their own tests.
        elsewhere = source.messages or (source.choices and source.choices.right)
        assert source.model_dump(exclude=PLACES) in tested or elsewhere, setting


def test_the_generator_of_the_data_page_gives_rows(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo.data.rows import load_rows

    monkeypatch.syspath_prepend(newcomer)
    source = load(TrainConfig, newcomer / "mine.yaml").data
    made = yaml.safe_load(block("data.md", "yaml", "options: {count: 1000}"))["data"]
    rows = load_rows(source.model_validate(made | {"limit": 5}))
    assert [str(2 * int(row["prompt"][2:-2])) for row in rows] == [row["answer"] for row in rows]


def test_the_cold_start_of_the_data_page_is_a_configuration(newcomer: Path) -> None:
    assert load(SftConfig, newcomer / "mine_sft.yaml").data.response == "worked"
