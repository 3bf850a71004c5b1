"""The command line, as far as it goes without engines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import yaml
from click import unstyle
from rich.console import Console, RenderableType
from tiny_policy import PRINTABLE, TINY, make_tiny_policy
from typer import Exit
from typer.testing import CliRunner, Result

from grpo.cli.app import app
from grpo.cli.guarded import guarded
from grpo.cluster.preflight.probes import PROBES, ProbeOutcome
from grpo.cluster.preflight.probes import table_of as preflight_table
from grpo.config import TrainConfig
from grpo.config.file import dump, load
from grpo.data.arithmetic import demonstrations
from grpo.evaluation.progress import results_table
from grpo.planning.memory import GIB
from grpo.planning.memory_fit import Memory
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import open_progress
from grpo.run import folder
from grpo.terminal import LiteralTable, show_traceback
from grpo.types import Phase
from grpo.visible import visible

SETTINGS = {
    "data": {"generator": "grpo.data.arithmetic:questions", "options": {"count": 50}},
    "verifiers": [{"name": "answer", "use": "numeric"}],
    "rollout": {"prompts_per_step": 6, "group_size": 4, "max_prompt_tokens": 12, "max_completion_tokens": 40},
    "algorithm": {"minibatches": 3},
    "learner": {"zero_stage": 3, "microbatch_tokens": 500},
    "train": {"steps": 7},
    "cluster": {"device": "cpu"},
}

# With heads that vLLM has on a CPU.
SAMPLED = TINY.model_copy(update={"hidden_size": 32, "heads": 1, "key_value_heads": 1})


def invoke(*arguments: object) -> Result:
    # Wide enough that no line is broken.
    return CliRunner(env={"COLUMNS": "400", "TERM": "dumb"}).invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"), SAMPLED)


@pytest.fixture
def config(tmp_path: Path, policy: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(SETTINGS | {"run": {"folder": str(tmp_path / "run")}, "policy": {"path": str(policy)}})
    )
    return path


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([], ["train", "sft", "check", "dotted overrides", "rollout.group_size=16", "grpo check CONFIG"]),
        (["train"], ["CONFIG", "KEY=VALUE", "GRPO", "resume=auto", "Ctrl-C", "checkpoint", "HTML report", "--debug"]),
        (["view"], ["RUN...", "--export", "--png", "--host", "this machine only"]),
        (["audit"], ["RUN", "Math-Verify", "audit.jsonl", "--limit", "95 % intervals"]),
        (["dpo"], ["CONFIG", "KEY=VALUE", "preferences", "policy/", "docs/preferences.md"]),
        (["reward"], ["CONFIG", "KEY=VALUE", "preferences", "--evaluate", "docs/reward_models.md"]),
        (["sft"], ["CONFIG", "KEY=VALUE", "prompt and response", "policy/", "Hugging Face"]),
        (
            ["check"],
            [
                "CONFIG",
                "KEY=VALUE",
                "resolved",
                "batch arithmetic",
                "memory",
                "gold-limit",
                "strict",
                "claims no devices",
                "--cluster",
            ],
        ),
    ],
)
def test_help_says_what_matters(command: list[str], told: list[str]) -> None:
    result = invoke(*command, "--help")
    text = " ".join(unstyle(result.output).replace("│", " ").split())
    assert result.exit_code == 0
    assert [part for part in told if part not in text] == []


@pytest.mark.parametrize("command", ["train", "sft", "check"])
def test_a_mistake_is_told_whole_and_without_a_traceback(tmp_path: Path, command: str) -> None:
    path = tmp_path / "bad.yaml"
    section = {"sft": {"stepz": 1}} if command == "sft" else {"train": {"steps": "many"}}
    path.write_text(yaml.safe_dump({"policyy": {}, "run": {"seed": "x"}, **section}))
    result = invoke(command, path, "learner.ranks=0", "nonsense")
    assert result.exit_code == 2
    assert "Traceback" not in result.output and result.stdout == ""
    problems = [line for line in result.stderr.splitlines() if line.startswith("  - ")]
    for part in ("policyy is not a known key; did you mean policy?", "run.seed", "learner.ranks", "'nonsense'"):
        assert [part in problem for problem in problems].count(True) == 1, part
    assert f"{len(problems)} problems in {path}" in result.stderr


@pytest.mark.parametrize("command", ["train", "sft", "check"])
def test_a_file_that_is_not_there_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / "quickstart.yaml").write_text("{}")
    result = invoke(command, tmp_path / "quickstrat.yaml")
    assert result.exit_code == 2
    assert "there is no configuration file" in result.stderr and "did you mean" in result.stderr


def test_square_brackets_in_a_message_are_no_markup(tmp_path: Path) -> None:
    result = invoke("train", tmp_path / "[red]absent[/].yaml")
    assert "[red]absent[/].yaml" in result.stderr


FOREIGN = "[INST] 1+1=? [/INST] [link=http://evil]x[/] :bomb: \x1b]8;;http://evil\x1b\\\\ \x9b2J \u202e"


def test_what_data_say_is_shown_and_not_obeyed(tmp_path: Path, config: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": FOREIGN, "reference": "[/]\x1b[2J"}) + "\n" for _ in range(8)))
    result = invoke(
        "check",
        config,
        f"data={{path: {data}, reference: reference}}",
        "rollout.max_prompt_tokens=100",
        "rollout.max_completion_tokens=20",
    )
    assert "[INST] 1+1=? [/INST] [link=http://evil]x[/] :bomb:" in result.output, result.output
    assert not set("\x1b\x9b\u202e") & set(result.output)


def shown_by_progress(kind: str) -> str:
    console = Console(file=StringIO(), width=400, force_terminal=kind == "live", _environ={"TERM": "xterm"})
    progress = open_progress(FOREIGN, console=console)
    with progress.phase(Phase.START, FOREIGN):
        progress.show(FOREIGN)
    progress.close()
    return console.file.getvalue()  # type: ignore[attr-defined]


def printed(renderable: RenderableType) -> str:
    """By a console of rich's own, as a program may have that shows our tables."""
    console = Console(file=StringIO(), width=400)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "shown",
    [
        lambda: printed(ClosingTable(FOREIGN, ((FOREIGN, FOREIGN),))),
        lambda: str(ClosingTable(FOREIGN, ((FOREIGN, FOREIGN),))),
        lambda: printed(results_table(FOREIGN, {})),
        lambda: printed(preflight_table({FOREIGN: dict.fromkeys(PROBES, ProbeOutcome(False, FOREIGN))})),
        lambda: printed(LiteralTable(FOREIGN, title=FOREIGN)),
        lambda: shown_by_progress("plain"),
        lambda: shown_by_progress("live"),
    ],
)
def test_no_table_and_no_display_obeys(shown: Callable[[], str]) -> None:
    text = shown()
    assert "[INST] 1+1=? [/INST] [link=http://evil]x[/] :bomb:" in " ".join(text.split())
    assert not set("\x9b\u202e") & set(text) and "\x1b]8" not in text and "\x1b[2J" not in text


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError])
def test_what_an_error_quotes_is_not_obeyed(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error(FOREIGN)

    with pytest.raises(Exit):
        guarded(fail, debug=False)
    # What nobody expects goes to Python's own hook, which the command line replaces.
    show_traceback(error, error(FOREIGN), None)
    told = capsys.readouterr().err
    assert told.count(visible(FOREIGN)) == 2 and not set("\x1b\x9b\u202e") & set(told)


def test_debug_shows_where(tmp_path: Path) -> None:
    result = invoke("train", tmp_path / "absent.yaml", "--debug")
    assert isinstance(result.exception, ValueError)


def test_check_prints_the_config_and_the_plan(config: Path) -> None:
    result = invoke("check", config, "learner.ranks=2")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in (
        # What the file sets, and what an override sets.
        "minibatches: 3",
        "ranks: 2",
        "2 rank(s), 1 thread(s) each, ZeRO-3",
        "1 vLLM replica(s), 1 thread(s) each",
        "6 prompts x 4 completions = 24 completions",
        "8 completions (3 minibatches) over 2 rank(s), in microbatches of at most 500 tokens",
        "at most 1,248 (52 a sequence)",
        "7, 21 optimizer steps",
        "no GPU",
        "50 prompts; 0 too long and left out",
        "=?",
        "parameters",
    ):
        assert part in text, part
    assert not (config.parent / "run").exists()
    # What is left to the default is shown only if it is asked for.
    assert "clip_high" not in text and "max_restarts" not in text
    full = invoke("check", config, "learner.ranks=2", "--full").stdout
    assert "clip_high: 0.28" in full and "max_restarts: 20" in full
    order = ["what differs from the defaults", "50 prompts", "first training prompt", "gold answers: good", "actors"]
    order += ["6 prompts x 4", "memory (estimate)", "verdict: ready: a run would start"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert result.stdout.strip().splitlines()[-1] == "verdict: ready: a run would start"


def test_check_shows_the_first_prompt_as_the_policy_reads_it(config: Path, policy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    text = "12+3=?"
    result = check_rows_of(config, [{"prompt": text, "answer": "15"}, {"prompt": "1+1=?", "answer": "2"}])
    assert result.exit_code == 0, result.output
    ids = tokenizer(text)["input_ids"]
    lines = [line.strip() for line in result.stdout.splitlines()]
    begin = lines.index(f"first training prompt, as the policy reads it ({len(ids)} tokens)")
    assert lines[begin + 1] == f"| {tokenizer.decode(ids)}" and lines[begin + 3] == "| 15"


ANY_TEXT = ["[INST] 1 [/INST]", "List[float] [bold]1", "1\x1b[31m\u202e2", "[/x]\n[red]\n:smile:"]


@pytest.mark.parametrize("text", ANY_TEXT)
def test_check_shows_any_text(config: Path, tmp_path: Path, text: str) -> None:
    assert PRINTABLE.alphabet
    new = PRINTABLE.model_copy(update={"alphabet": PRINTABLE.alphabet + "\n\x1b\u202e"})
    rows = [{"prompt": text, "answer": "1"}, {"prompt": "2", "answer": "2"}]
    chosen = f"policy.path={make_tiny_policy(tmp_path / 'any', new)}"
    result = check_rows_of(config, rows, chosen, "rollout.max_prompt_tokens=40")
    assert result.exit_code == 0, result.output
    for line in text.split("\n"):
        assert f"| {visible(line)}" in result.stdout
    assert "\x1b" not in result.stdout and "\u202e" not in result.stdout


def test_check_warns_of_characters_that_the_policy_cannot_read(config: Path) -> None:
    result = check_rows_of(config, [{"prompt": "1 é", "answer": "1"}, {"prompt": "2", "answer": "2"}])
    assert result.exit_code == 0, result.output
    assert "1 of 2 training prompts have characters that the tokenizer does not know" in result.stdout
    assert "verdict: a run would start; 1 warning above" in result.stdout


def test_check_shows_a_long_prompt_whole_if_it_is_asked_to(config: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "1" * 2500 + "+7", "answer": "1"}, {"prompt": "2", "answer": "2"}]
    big = make_tiny_policy(tmp_path / "long", SAMPLED.model_copy(update={"max_position": 4000}))
    fitting = (f"policy.path={big}", "rollout.max_prompt_tokens=3000", "learner.microbatch_tokens=4000")
    assert "and 502 more characters; --full prints them" in check_rows_of(config, rows, *fitting).stdout
    assert "1+7" in check_rows_of(config, rows, *fitting, "--full").stdout.replace("\n", "").replace(" ", "")


def test_check_prints_what_a_preset_expands_to(config: Path) -> None:
    mine = ("algorithm.kl=grpo.algorithm.losses:k2_kl", "algorithm.kl_coefficient=0.1")
    result = invoke("check", config, "algorithm.preset=gspo", "algorithm.clip_low=0.001", *mine)
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "ratio: sequence" in told and "clip_high: 0.0004" in told and "aggregation: sequence_mean" in told
    assert "preset gspo: advantage=group_std, ratio=sequence, clip_high=0.0004" in told
    assert "instead of it clip_low=0.001" in told
    # What is said of a choice is the first line of its function's docstring, of the user's functions too.
    assert "ratio sequence: The clipped surrogate with one ratio for a sequence: the geometric mean of its" in told
    assert "edges 0.999 to 1.0004; to the sampler's" in told
    assert "KL 0.1 x grpo.algorithm.losses:k2_kl: d^2 / 2 with d" in told
    assert "your functions algorithm.kl: loaded, and tried on a tiny batch" in told


def test_check_refuses_what_cannot_work_with_a_remedy(config: Path) -> None:
    result = invoke("check", config, "algorithm.kl_coefficient=0.1", "algorithm.importance_weight=token")
    assert result.exit_code != 0
    told = " ".join(result.output.split())
    assert "2 problems" in told and "set algorithm.kl=k3" in told and "set algorithm.proximal=recomputed" in told
    result = invoke("check", config, "algorithm.preset=gpso")
    assert result.exit_code != 0 and "algorithm.preset" in result.output


def test_check_of_a_cold_start_needs_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    new = TINY.model_dump(mode="json")
    path.write_text(
        yaml.safe_dump(
            {
                "run": {"folder": str(tmp_path / "run")},
                "policy": {"new": new},
                "data": {"generator": "grpo.data.arithmetic:demonstrations", "options": {"count": 9}},
                "sft": {"steps": 70, "batch_size": 5, "max_tokens": 100},
            }
        )
    )
    result = invoke("check", path)
    assert result.exit_code == 0, result.output
    assert "5 rows over 1 rank(s)" in " ".join(result.stdout.split())
    assert "9 rows; those that are too long are known when the policy is made" in result.stdout
    assert "policy.new has heads of size 4 (hidden_size / heads)" in result.stdout
    (row, *_) = demonstrations(count=9)
    lines = [line.strip() for line in result.stdout.splitlines()]
    begin = lines.index("first training row, as the policy reads it")
    assert lines[begin + 1] == f"| {row['prompt']}" and lines[begin + 3] == f"> {row['response']}"
    assert not (tmp_path / "run").exists()


def test_check_shows_which_part_of_a_supervised_row_carries_loss(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert PRINTABLE.alphabet
    new = PRINTABLE.model_copy(update={"alphabet": PRINTABLE.alphabet + "\n"})
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path / "policy", new))
    tokenizer.chat_template = (
        "{% for one in messages %}[{{ one['role'] }}]{{ one['content'] }}[/{{ one['role'] }}]\n{% endfor %}[assistant]"
    )
    tokenizer.save_pretrained(tmp_path / "policy")
    talk = [
        {"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"},
        {"role": "user", "content": "4+4?"}, {"role": "assistant", "content": "4+4=8\n[/8]"},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    settings = {
        "run": {"folder": str(tmp_path / "run")},
        "policy": {"path": str(tmp_path / "policy")},
        "data": {"path": str(tmp_path / "rows.jsonl"), "messages": "messages", "learn_turns": "last"},
        "sft": {"steps": 1, "batch_size": 1, "max_tokens": 100},
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(settings))
    result = invoke("check", path)
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    begin = next(at for at, line in enumerate(lines) if line.startswith("first training row, as the policy reads it ("))
    shown = ["| [user]2+3?[/user]", "| [assistant]5[/assistant]", "| [user]4+4?[/user]", "| [assistant]"]
    assert lines[begin + 1 : begin + 5] == shown
    assert lines[begin + 5] == "the part that carries loss (11 tokens, with the end token)"
    assert lines[begin + 6 : begin + 8] == ["> 4+4=8", f"> [/8]{tokenizer.eos_token}"]


def test_check_tells_what_is_wrong_with_the_data(config: Path) -> None:
    result = invoke("check", config, "rollout.max_prompt_tokens=3")
    assert result.exit_code == 2
    assert "none of the 50 prompts" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("hub_answers", [True, False])
def test_check_builds_every_verifier(config: Path, monkeypatch: pytest.MonkeyPatch, hub_answers: bool) -> None:
    """Also those that come second, without gold answers, and where no row can be read."""
    if not hub_answers:
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    data = {} if hub_answers else {"data": {"hub": "nobody/nothing"}}
    verifiers = [
        {"name": "answer", "use": "numeric"},
        {"name": "form", "use": "formatt"},
        {"name": "long", "use": "length"},
    ]
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | data | {"verifiers": verifiers}))
    result = invoke("check", config, "--gold-limit", "0")
    assert result.exit_code == 2
    assert "verifiers: 'form': " in result.stderr and "did you mean 'format'?" in result.stderr
    assert "verifiers: 'long': " in result.stderr and "'limit'" in result.stderr
    assert "'answer'" not in result.stderr


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("algorithm.advantage=nowhere.py:f", "algorithm.advantage="),
        ("data.options.count=5", "5 prompts that fit, fewer than rollout.prompts_per_step=6"),
        (
            "rollout.max_completion_tokens=117",
            "rollout.max_prompt_tokens + rollout.max_completion_tokens = 129 tokens do not fit the 128 positions",
        ),
        (
            "evaluation={data: {generator: grpo.data.arithmetic:questions}, max_completion_tokens: 117}",
            "evaluation.max_completion_tokens = 129 tokens do not fit",
        ),
    ],
)
def test_check_and_train_refuse_alike_before_anything_starts(config: Path, override: str, told: str) -> None:
    for command in ("check", "train"):
        result = invoke(command, config, override)
        assert result.exit_code == 2, result.output
        assert told in result.stderr and "Traceback" not in result.output
        assert not (config.parent / "run").exists()
    assert invoke("check", config, "rollout.max_completion_tokens=116").exit_code == 0


def check_rows_of(config: Path, rows: list[dict[str, object]], *arguments: str, **settings: object) -> Result:
    data = config.with_name("rows.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fitting = {"rollout": SETTINGS["rollout"] | {"prompts_per_step": 1}, "algorithm": {}, "data": {"path": str(data)}}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | fitting | settings))
    return invoke("check", config, *arguments)


def test_check_runs_the_gold_answers_through_their_verifier(config: Path) -> None:
    good = [{"prompt": f"{n}", "answer": str(n)} for n in range(40)]
    result = check_rows_of(config, good)
    assert result.exit_code == 0, result.output
    assert "gold answers: good: 40 of 40 are judged `correct`; 0 of 40 wrong answers (taken" in result.stdout
    assert "answer: 40 of 40 gold answers are `correct`; of 40 answers of other rows, 0 are" in result.stdout

    bad = [*good, {"prompt": "41", "answer": "forty-one"}]
    result = check_rows_of(config, bad)
    assert result.exit_code == 0, result.output
    assert "look at them: 40 of 40 are judged `correct`" in result.stdout and "1 row(s) cannot be used" in result.stdout
    assert re.search(r"row 40 of \S*rows\.jsonl: 'forty-one': ", result.stdout) and "not a number" in result.stdout
    assert check_rows_of(config, bad, "--strict").exit_code == 1
    assert check_rows_of(config, good, "--strict").exit_code == 0

    result = check_rows_of(config, bad, "--gold-limit", "7")
    assert "7 of 40 prompts" in result.stdout and "7 of 7 gold answers" in result.stdout
    unchecked = check_rows_of(config, bad, "--gold-limit", "0").stdout.splitlines()
    assert unchecked.pop().endswith("gold answers were not checked (--gold-limit=0)")
    assert not any("gold answers" in line for line in unchecked)


def test_check_warns_of_gold_answers_that_the_math_parser_cannot_read(config: Path) -> None:
    rows = [{"prompt": "a", "answer": "\\frac{1}{"}, {"prompt": "b", "answer": "2"}]
    result = check_rows_of(config, rows, verifiers=[{"name": "answer", "use": "math"}])
    assert result.exit_code == 0, result.output
    assert "1 gold answer(s) cannot be parsed as mathematics" in result.stdout
    assert re.search(r"row 0 of \S*rows\.jsonl: '", result.stdout)


KNOWING = """
class Knowing:
    def __call__(self, completion, reference, prompt):
        return reference != "wrong" and completion.endswith(str(reference))

    def reference_problem(self, reference, prompt):
        return "" if len(reference) < 9 else f"too long for {prompt['problem']}"
"""


@pytest.mark.parametrize(
    ("answers", "override", "code", "headline"),
    [
        (["a", "b", "c"], "", 0, "gold answers: good: 3 of 3 are judged `correct`"),
        ([*"abcdefghijklmnopqrst", "x" * 9], "", 0, "`correct` too; 1 row(s) cannot be used, and a run leaves them"),
        (["a", "b", "\x1b" * 9], "", 1, "FAILED: training data: 1 of 3 reference answers cannot be used (33.3%)"),
        (["a", "b", "\x1b" * 9], "verification.max_unusable_share=0.5", 0, "look at them: 2 of 2 are judged `correct`"),
        (["a", "b", "\x1b" * 9], "verification.check_golds=warn", 0, "FAILED: training data: 1 of 3 reference"),
        (["wrong"] * 3, "", 1, "FAILED: verifier 'own': none of 3 gold answers is `correct`"),
        (["wrong"] * 3, "verification.check_golds=warn", 0, "FAILED: verifier 'own': none of 3 gold answers is"),
    ],
)  # fmt: skip
def test_the_headline_is_what_a_run_would_do_with_the_gold_answers(
    config: Path, answers: list[str], override: str, code: int, headline: str
) -> None:
    config.with_name("knowing.py").write_text(KNOWING)
    rows: list[dict[str, object]] = [{"prompt": f"{n}", "answer": answer} for n, answer in enumerate(answers)]
    verifiers = [{"name": "own", "use": f"{config.with_name('knowing.py')}:Knowing"}]
    result = check_rows_of(config, rows, *([override] if override else []), verifiers=verifiers)
    assert result.exit_code == code, result.output
    told = result.stdout[result.stdout.index("gold answers") :]
    assert headline in told.splitlines()[0] and "\x1b" not in told
    if len(answers[-1]) == 9:
        last = len(answers) - 1
        name = f"row {last} of {config.with_name('rows.jsonl')}: {answers[-1]!a}: too long for {last}"
        assert name in told and "correct these rows" in told
    if code:
        refused = invoke("train", config)
        assert refused.exit_code == 2 and headline.removeprefix("FAILED: ") in refused.stderr, refused.output
        assert "check_golds=warn" in refused.stderr and not (config.parent / "run").exists()


def test_check_refuses_a_tracker_that_is_not_installed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for command in ("check", "train"):
        result = invoke(command, config, "report.trackers=[wandb]")
        assert result.exit_code == 2 and "'wandb' is configured but not installed" in result.stderr, result.output


def test_check_reports_the_problems_beside_a_missing_policy(config: Path) -> None:
    rows: list[dict[str, object]] = [{"question": "1", "answer": "1"}]
    verifiers = [{"name": "own", "use": "absent.py:function"}]
    result = check_rows_of(config, rows, "policy.path=./absent", verifiers=verifiers)
    assert result.exit_code == 2, result.output
    for problem in ("policy.path='./absent' is neither", "verifiers: 'own': ", "data.prompt"):
        assert problem in result.stderr, result.output


def test_a_verifier_that_always_raises_fails_the_check_at_any_place_in_the_list(config: Path) -> None:
    raising = config.with_name("raising.py")
    raising.write_text("def unfinished(completion, reference):\n    raise NotImplementedError\n")
    rows: list[dict[str, object]] = [{"prompt": f"{n}", "answer": str(n)} for n in range(9)]
    own = {"name": "own", "use": f"{raising}:unfinished"}
    for verifiers in ([*SETTINGS["verifiers"], own], [own]):  # type: ignore[misc]
        result = check_rows_of(config, rows, verifiers=verifiers)
        said = (
            "verifier 'own' failed on all 8 completions that were tried, so a run would stop: "
            f"NotImplementedError ({raising}:2)"
        )
        assert result.exit_code == 1 and said in result.stderr, result.output
        assert "correct the rows" not in result.stderr and f"FAILED: {said}" in result.stdout
        refused = invoke("train", config)
        assert refused.exit_code == 2 and said in refused.stderr, refused.output
    assert check_rows_of(config, rows, "verification.check_golds=warn", verifiers=verifiers).exit_code == 0


def test_check_survives_a_verifier_that_hangs(config: Path) -> None:
    stuck = config.with_name("stuck.py")
    stuck.write_text("import time\n\n\ndef verify(completion, reference):\n    time.sleep(600)\n")
    rows = [{"prompt": f"{n}", "answer": str(n)} for n in range(9)]
    begun = time.monotonic()
    result = check_rows_of(config, rows, verifiers=[{"name": "own", "use": f"{stuck}:verify"}],
                           verification={"deadline_s": 0.5, "workers": 2})  # fmt: skip
    assert result.exit_code == 1, result.output
    assert re.search(r"FAILED: verifier 'own': none of \d verdicts on gold answers came in time", result.stdout)
    assert "within verification.deadline_s=0.5: make it end sooner" in result.stdout
    assert "a run would not start" in result.stderr and "correct the rows" not in result.stderr
    assert "hung until their deadline" in result.stdout
    assert time.monotonic() - begun < 60


def test_contradicting_answers_change_the_verdict(config: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"{n}", "answer": str(n)} for n in range(9)]
    result = check_rows_of(config, [*rows, {"prompt": "3", "answer": "4"}])
    assert result.exit_code == 0 and "verdict: a run would start; 1 warning above" in result.stdout, result.output
    file = config.with_name("rows.jsonl")
    assert f"row 3 ({file}:4) and row 9 ({file}:10) ('3' and '4')" in result.stdout


def test_check_names_the_section_of_held_out_data(config: Path) -> None:
    held_out = "evaluation={data: {generator: grpo.data.arithmetic:questions, options: {count: 5}}}"
    for override, told in (("options.helf_out=true", "evaluation.data.options="), ("prompt=x", "data.prompt='x'")):
        result = invoke("check", config, held_out, f"evaluation.data.{override}")
        assert result.exit_code == 2 and told in result.stderr, result.output
        assert "evaluation.data." in result.stderr


def test_a_verifier_has_the_memory_that_is_asked_for(config: Path) -> None:
    hungry = config.with_name("hungry.py")
    hungry.write_text("def verify(completion, reference):\n    return len(bytes(3 << 30)) > 0\n")
    verifiers = [{"name": "own", "use": f"{hungry}:verify"}]
    rows: list[dict[str, object]] = [{"prompt": "1", "answer": "1"}, {"prompt": "2", "answer": "2"}]
    told = check_rows_of(config, rows, verifiers=verifiers).stdout
    assert "verifier 'own' failed" in told and "2048 MiB of address space (the setting memory_mib)" in told
    told = check_rows_of(config, rows, "verification.memory_mib=4096", verifiers=verifiers).stdout
    assert "2 of 2 gold answers" in told


def test_check_of_mixed_data(config: Path) -> None:
    rows = [
        {"prompt": "1", "answer": "1", "kind": "sum"},
        {"prompt": "2", "answer": "Paris", "kind": "place"},
        {"prompt": "3", "answer": "2", "kind": "sum"},
    ]
    verifiers = [
        {"name": "number", "use": "numeric", "when": {"kind": ["sum", "product"]}},
        {"name": "name", "use": "exact", "when": {"kind": "place"}},
        {"name": "form", "use": "format", "weight": 0.1},
    ]
    result = check_rows_of(config, rows, verifiers=verifiers)
    assert result.exit_code == 0, result.output
    assert "number: 2 of 2 gold" in result.stdout and "name: 1 of 1 gold" in result.stdout
    rows[1]["kind"] = "plaice"
    result = check_rows_of(config, rows, verifiers=verifiers)
    assert result.exit_code == 2
    assert re.search(r"row 1 of \S*rows\.jsonl has kind='plaice'", result.stderr)
    assert "name: kind is 'place'" in result.stderr


def test_check_where_the_hub_does_not_answer(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good config stays good; what could not be looked at is told after the plan."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = yaml.safe_load(config.read_text()) | {"data": {"hub": "nobody/nothing"}}
    config.write_text(yaml.safe_dump(settings))
    result = invoke("check", config)
    assert result.exit_code == 0, result.output
    assert "NOT CHECKED: the hub does not answer" in result.stdout
    assert "verdict: a run would start, but look at" in result.stdout
    assert invoke("check", config, "--strict").exit_code == 1
    plan, _, told = result.stdout.partition("gold answers of the training data could not be checked:")
    assert "nobody/nothing" in told and "path=" in told
    assert "memory" in plan


def test_check_refuses_what_does_not_fit_this_machine(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(free: int, host: int) -> None:
        monkeypatch.setattr("grpo.planning.check.memory_here", lambda: Memory(None, free, host))

    memory(GIB, GIB)
    result = invoke("check", config)
    assert result.exit_code == 2 and "does not fit the memory of this machine" in result.stderr
    assert result.stdout.splitlines()[-1] == "verdict: a run would not start; it needs more memory than there is"
    result = invoke("check", config, "cluster.check_memory=warn")
    assert result.exit_code == 0 and "verdict: a run would start; 1 warning above" in result.stdout
    # Other programs may free their memory until the run starts.
    memory(GIB, 64 * GIB)
    result = invoke("check", config)
    assert result.exit_code == 0 and "and 1.0 GiB are free" in result.stdout


def test_check_refuses_heads_that_the_engine_does_not_have_on_a_cpu(config: Path, tmp_path: Path) -> None:
    small = f"policy.path={make_tiny_policy(tmp_path / 'small')}"
    result = invoke("check", config, small)
    assert result.exit_code == 2 and "has heads of size 4" in result.stderr
    assert "has only the sizes 32, 64," in result.stderr and "policy.new.hidden_size" in result.stderr
    # On a GPU other kernels decide.
    assert "heads of size" not in invoke("check", config, small, "cluster.device=gpu").stderr


def test_check_of_a_policy_that_is_not_there_names_the_remedy(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = invoke("check", config, "policy.path=runs/no_such/policy")
    assert result.exit_code == 2
    assert "grpo sft" in result.stderr and "runs/no_such/policy" in result.stderr


def test_help_is_quick_to_come() -> None:
    """Help imports none of the libraries that take seconds."""
    program = (
        "import sys\nfrom grpo.cli.app import app\n"
        "try:\n    app(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'ray', 'vllm', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check", "CONFIG", "beta=1"], "it is a key of TRL"),
        (["launch", "slurm", "CONFIG", "--dry-run"], "no section `launch`"),
        (["eval", "nowhere", "--task", "aime2024"], "did you mean 'aime24'"),
        (["config", "num_generations"], "write rollout.group_size"),
    ],
)
def test_a_mistake_is_told_before_the_engines_are_imported(config: Path, arguments: list[str], told: str) -> None:
    program = (
        "import sys\nfrom grpo.cli.app import app\n"
        f"try:\n    app({[str(config) if each == 'CONFIG' else each for each in arguments]!r})\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'ray', 'vllm', 'deepspeed'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told in done.stderr and done.stdout.splitlines()[-1] == "heavy: []", done.stdout


def test_the_version_is_shown() -> None:
    shown = invoke("--version")
    assert shown.exit_code == 0 and shown.stdout.startswith("verigrpo")


def test_a_complete_run_says_that_nothing_was_trained_and_what_has_no_effect(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump(load(TrainConfig, config)))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward/mean": 0.5}) + "\n")
    monkeypatch.setattr(folder, "is_finished", lambda run, steps: True)
    result = invoke("train", config, "rollout.temperature=0.5", "resume=auto")
    assert f"{run} is complete: nothing was trained" in result.output
    assert "without effect: rollout.temperature: 1.0 -> 0.5" in result.output
    assert "without effect" not in invoke("train", config, "resume=auto").output
