"""One self-contained HTML page per run, made from its run folder: no network, no script but its own.

What a policy writes is hostile. Three things keep it text: every value goes through Jinja's escaping, characters
that a page would hide or that would reorder it are shown by name, and the page's content security policy allows
exactly the one script and the one style sheet whose hashes it names.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grpo.report import charts as svg_chart
from grpo.report import run_files
from grpo.report.charts import Chart, line_chart, step_time_chart
from grpo.report.closing_table import ClosingTable, closing_table
from grpo.report.metrics_log import Curve, History, read_history
from grpo.report.rollout_store import StoredGroup, StoredRollout, read_groups, step_path, stored_steps
from grpo.report.step_time import step_time
from grpo.visible import visible

_GROUPS_PER_STEP = 3
_ROLLOUTS_PER_GROUP = 8
# Enough to judge a long chain of thought by its begin and end; the whole text is in the Parquet file.
_HEAD_CHARACTERS, _TAIL_CHARACTERS = 6000, 2000
# What a reader wants to know of a run before its curves: label -> keys of the config, the first one present counts.
_CONFIG_SUMMARY = (
    ("policy", ("policy.path", "policy.new")),
    ("data", ("data.path", "data.hub", "data.generator")),
    ("prompts per step", ("rollout.prompts_per_step",)),
    ("completions per prompt", ("rollout.group_size",)),
    ("completion limit, tokens", ("rollout.max_completion_tokens",)),
    ("verifiers", ("verifiers",)),
    ("temperature", ("rollout.temperature",)),
    ("minibatches", ("algorithm.minibatches",)),
    ("advantage", ("algorithm.advantage",)),
    ("ratio", ("algorithm.ratio",)),
    ("aggregation", ("algorithm.aggregation",)),
    ("clip low", ("algorithm.clip_low",)),
    ("clip high", ("algorithm.clip_high",)),
    ("KL coefficient", ("algorithm.kl_coefficient",)),
    ("learning rate", ("learner.learning_rate",)),
    ("learner ranks", ("learner.ranks",)),
    ("ZeRO stage", ("learner.zero_stage",)),
    ("generators", ("generator.replicas",)),
    ("seed", ("run.seed",)),
)


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """A group as it is shown: its rollouts from the best to the worst, and how many of them are left out."""

    group: StoredGroup
    rollouts: tuple[StoredRollout, ...]
    left_out: int
    is_mixed: bool


@dataclass(frozen=True, slots=True)
class SampleStep:
    """The groups shown of one step, out of `of` that were stored in `file`."""

    step: int
    file: str
    samples: tuple[ShownGroup, ...]
    of: int


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template shows."""

    name: str
    steps: int
    finished: str
    table: ClosingTable
    summary: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    more_charts: tuple[Chart, ...]
    sample_steps: tuple[SampleStep, ...]
    config: str


def write_html(run_dir: Path, path: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        run_dir: the run folder; whatever of it is missing is left out of the page.
        path: where to write; `report.html` in the run folder by default.

    Returns:
        The path written.
    """
    path = path or run_dir / run_files.REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(_render(_page(run_dir)), encoding="utf-8")
    os.replace(beside, path)
    return path


def shortened(text: str) -> str:
    """A very long text by its begin and its end."""
    left_out = len(text) - _HEAD_CHARACTERS - _TAIL_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:_HEAD_CHARACTERS]}\n\n[... {left_out:,} characters left out ...]\n\n{text[-_TAIL_CHARACTERS:]}"


def plain(reference: str) -> str:
    """A stored reference, which is JSON, as a person writes it: a string without its quotes."""
    value = json.loads(reference)
    return value if isinstance(value, str) else reference


def choose_groups(groups: Sequence[StoredGroup], count: int = _GROUPS_PER_STEP) -> tuple[StoredGroup, ...]:
    """The groups that show most: those whose rewards differ most, the last place for one where a verdict failed."""
    # Stable: of equally telling groups the first ones, so that a page made again is the same page. Only one place
    # goes to a failure, or a bad day of the verifiers would hide what the policy does.
    ranked = sorted(groups, key=_spread, reverse=True)
    failed = [group for group in ranked if any(rollout.reward is None for rollout in group.rollouts)][:1]
    others = [group for group in ranked if group not in failed]
    return (*others[: count - len(failed)], *failed)


def _spread(group: StoredGroup) -> float:
    rewards = [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
    return statistics.pvariance(rewards) if rewards else 0.0


def _render(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("grpo.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.filters["shortened"] = shortened
    environment.filters["plain"] = plain
    environment.filters["signed"] = lambda value: f"{value:+.2f}".replace("-", "\u2212")
    sources = {name: _source(environment, name) for name in ("report.css", "report.js")}
    return environment.get_template("report.html.j2").render(
        page=page,
        geometry=svg_chart,
        # Ours, and free of anything that ends the element they stand in, which a test holds.
        style=Markup(sources["report.css"]),
        script=Markup(sources["report.js"]),
        style_hash=_hash(sources["report.css"]),
        script_hash=_hash(sources["report.js"]),
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _page(run_dir: Path) -> Page:
    history = read_history(run_dir)
    name = run_dir.resolve().name
    config_file = run_dir / run_files.CONFIG
    config = config_file.read_text(encoding="utf-8", errors="replace") if config_file.exists() else ""
    finished = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(history.lines[-1].time)) if history.lines else ""
    return Page(
        name=name,
        steps=history.last_step() or 0,
        finished=finished,
        table=closing_table(name, history),
        summary=_config_summary(config),
        charts=_main_charts(history, mismatch_alarm_of(config)),
        more_charts=_more_charts(history),
        sample_steps=tuple(_sample_step(run_dir, step) for step in _first_middle_last(stored_steps(run_dir))),
        config=config,
    )


def _main_charts(history: History, mismatch_alarm: float | None) -> tuple[Chart, ...]:
    timed, span = step_time(history), _span(history)
    accuracy = {"held-out": history.curve("eval/accuracy"), "training samples": history.curve("rollout/accuracy")}
    length = {"mean": history.curve("rollout/completion_tokens_mean")}
    found = (
        line_chart("Accuracy", accuracy, span, low=0.0, high=1.0, dotted=("held-out",)),
        line_chart("Mean reward", {"mean reward": history.curve("reward/mean")}, span),
        line_chart("Completion length", length, span, unit="tokens", low=0.0),
        step_time_chart(timed) if timed else None,
        mismatch_chart(history, mismatch_alarm),
    )
    return tuple(chart for chart in found if chart)


def mismatch_chart(history: History, alarm: float | None) -> Chart | None:
    """How far learner and generators are apart, beside the threshold of the alarm."""
    first = history.curve("learner/mismatch_kl_first")
    curves = {"first update": first, "all updates": history.curve("learner/mismatch_kl")}
    if first.finite() and alarm is not None:
        curves["alarm"] = Curve(first.steps, (alarm,) * len(first.steps))
    chart = line_chart("Mismatch of learner and generators", curves, _span(history), unit="nats", low=0.0)
    if chart is None:
        return None
    shapes = (dataclasses.replace(shape, style="alarm") if shape.label == "alarm" else shape for shape in chart.shapes)
    return dataclasses.replace(chart, shapes=tuple(shapes))


def mismatch_alarm_of(config: str) -> float | None:
    """The threshold that a run's config names, None where it names none."""
    try:
        found = _look_up(yaml.safe_load(config), "report.mismatch_alarm")
    except yaml.YAMLError:
        return None
    return float(found) if isinstance(found, int | float) else None


def _more_charts(history: History) -> tuple[Chart, ...]:
    names = sorted(name for name in history.names() if name != "time/run_s")
    found = (line_chart(name, {name: history.curve(name)}, _span(history)) for name in names)
    return tuple(chart for chart in found if chart)


def _span(history: History) -> tuple[int, int]:
    return (history.lines[0].step, history.lines[-1].step) if history.lines else (0, 0)


def _first_middle_last(steps: Sequence[int]) -> tuple[int, ...]:
    if len(steps) <= 3:
        return tuple(steps)
    middle = (steps[0] + steps[-1]) / 2
    return (steps[0], min(steps[1:-1], key=lambda step: abs(step - middle)), steps[-1])


def _sample_step(run_dir: Path, step: int) -> SampleStep:
    groups = read_groups(run_dir, step)
    file = str(step_path(run_dir, step).relative_to(run_dir))
    return SampleStep(step, file, tuple(_sample(group) for group in choose_groups(groups)), of=len(groups))


def _sample(group: StoredGroup) -> ShownGroup:
    # Best first; what has no reward last.
    ranked = sorted(group.rollouts, key=lambda rollout: (rollout.reward is None, -(rollout.reward or 0.0)))
    left_out = max(0, len(ranked) - _ROLLOUTS_PER_GROUP)
    if left_out:
        half = _ROLLOUTS_PER_GROUP // 2
        ranked = [*ranked[:half], *ranked[-half:]]
    rewards = {rollout.reward for rollout in group.rollouts if rollout.reward is not None}
    return ShownGroup(group, tuple(ranked), left_out, is_mixed=len(rewards) > 1)


def _config_summary(config: str) -> tuple[tuple[str, str], ...]:
    try:
        tree = yaml.safe_load(config)
    except yaml.YAMLError:
        # The page still shows the file as it is.
        return ()
    found = []
    for label, keys in _CONFIG_SUMMARY:
        value = next((value for key in keys if (value := _look_up(tree, key)) is not None), None)
        if value is not None:
            found.append((label, _in_short(value)))
    return tuple(found)


def _in_short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(one.get("name", "?")) if isinstance(one, Mapping) else str(one) for one in value)
    return "made from nothing" if isinstance(value, Mapping) else str(value)


def _look_up(tree: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree
