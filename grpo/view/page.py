"""The page of `grpo view`: its HTML, and the page as a single file that needs no server, such as `report.html`.

A policy's texts may be hostile. The file holds these texts as JSON that cannot end the HTML element
around it. If a character is hidden
or would reorder the page, the page shows the character's name instead. The script inserts texts only as text. The
page's content security policy allows only the script and the style sheet whose hashes the policy names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grpo import files
from grpo.report import run_files
from grpo.report.rollout_store import stored_steps
from grpo.view import curves
from grpo.view import learned as step_comparison
from grpo.view import payloads as view_data
from grpo.view.index import Filter, spread_over
from grpo.view.runs import FLAG_STEPS, SOURCES, RunData, open_runs

ASSETS = ("view.css", "view.js")
# Limits of the file for each run and source: numbers of steps, groups, and completions per group. The file then has a
# few megabytes. The flags read the same steps.
_STEPS, _GROUPS, _COMPLETIONS = FLAG_STEPS, 150, 16
# Numbers of characters that are kept at the begin and at the end of a long text.
_HEAD_CHARACTERS, _TAIL_CHARACTERS = 6000, 2000
_MOST_CHARACTERS = 4_000_000
_TIMED_STEPS = 60
# Log-probabilities need more space than the text, so the file has log-probabilities only for groups of short
# completions.
_SHADED_TOKENS = 600


def page(exported: Mapping[str, Any] | None = None) -> str:
    """The page's HTML. If `exported` is given, the HTML contains this data, the script and the style."""
    environment = Environment(
        loader=PackageLoader("grpo.view", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources = {
        name: resources.files("grpo.view").joinpath("templates", name).read_text(encoding="utf-8") for name in ASSETS
    }
    # The browser does not run the element with the data. Without `<` the data cannot end this element.
    data = _json(exported).replace("<", "\\u003c") if exported is not None else ""
    return environment.get_template("view.html.j2").render(
        exported=exported is not None,
        names=[run["name"] for run in exported["overview"]["runs"]] if exported is not None else [],
        data=Markup(data),
        style=Markup(sources["view.css"]),
        script=Markup(sources["view.js"]),
        style_hash=_hash(sources["view.css"]),
        script_hash=_hash(sources["view.js"]),
    )


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder and return its path."""
    return export([run_dir], run_dir / run_files.REPORT)


def export(folders: Sequence[Path], path: Path) -> Path:
    """Write the page as one file, with all curves and flags and with a selection of groups.

    For each run, the file holds the groups whose rewards differ most: up to 150 groups and 4 million characters, from
    up to 24 steps that are spread over the stored steps. A group has up to 16 completions: the best and the worst. If
    a text has more than 8,000 characters, only its begin and its end are kept.

    Args:
        folders: run folders; if a file is missing in a folder, the page does not show the data of this file.
        path: the file; if its folder is missing, the folder is made.

    Raises:
        ValueError: a folder holds no run, or a file in it has a line of a different format.
    """
    runs = open_runs(folders, most_steps=_STEPS)
    for run in runs:
        for index in run.indexes.values():
            index.refresh()
    data = {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "overview": (overview := view_data.overview(runs)),
        "charts": curves.charts(runs, [name for section in overview["sections"] for name in section["metrics"]]),
        "runs": [_exported(run) for run in runs],
    }
    files.write_text(path, page(data))
    return path


def _exported(run: RunData) -> dict[str, Any]:
    stored = stored_steps(run.run_dir, run_files.EVALUATIONS)
    steps = stored if len(stored) > 1 else stored_steps(run.run_dir)
    return {
        "groups": {source: _groups(run, source) for source in SOURCES},
        "flags": run.flags(),
        "mismatch": view_data.mismatch(run),
        "learned": shortened(step_comparison.learned(run, steps[0], steps[-1])) if len(steps) > 1 else None,
        "timeline": _time_lines(run),
        "step_time": curves.step_time_of(run),
    }


def _groups(run: RunData, source: str) -> dict[str, Any]:
    """Rows and details of the groups that the file holds; the newest groups come first."""
    listed = view_data.list_groups(run, source, Filter(), "spread", 0, 1_000_000)
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in listed["rows"]:
        by_step.setdefault(row["step"], []).append(row)
    each = max(1, _GROUPS // max(1, len(by_step)))
    chosen = {step: choose_groups(rows, each) for step, rows in by_step.items()}
    details = {
        (step, detail["group"]): _cut(detail)
        for step, rows in chosen.items()
        for detail in view_data.group_details(
            run, source, step, [row["group"] for row in rows], shaded_tokens=_SHADED_TOKENS
        )
    }
    # Take the first group of every step, then the second group of every step, until the file is full.
    kept, room = [], _MOST_CHARACTERS
    for row in (row for place in range(each) for rows in chosen.values() for row in rows[place : place + 1]):
        room -= len(_json(details[row["step"], row["group"]]))
        if room < 0:
            break
        kept.append(row)
    kept.sort(key=lambda row: (-row["step"], row["group"]))
    return {
        **listed,
        "steps": len({row["step"] for row in kept}),
        "of_steps": len(stored_steps(run.run_dir, SOURCES[source])),
        "rows": kept,
        "details": [details[row["step"], row["group"]] for row in kept],
    }


def choose_groups(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` rows, ranked by `spread`; the last place is for a group with a failed verdict, if any."""
    # Failed groups get only one place. Otherwise many failures would hide normal groups.
    failed = [row for row in rows if row["has_failed"]][: count - 1][:1]
    others = [row for row in rows if row not in failed]
    return [*others[: count - len(failed)], *failed]


def _cut(detail: dict[str, Any]) -> dict[str, Any]:
    """Remove completions from a group, and shorten texts, until the file's limits are kept."""
    ranked = sorted(
        detail["completions"], key=lambda completion: (completion["reward"] is None, -(completion["reward"] or 0.0))
    )
    left_out = max(0, len(ranked) - _COMPLETIONS)
    if left_out:
        ranked = [*ranked[: _COMPLETIONS // 2], *ranked[-_COMPLETIONS // 2 :]]
    shown: dict[str, Any] = shortened(detail | {"completions": ranked, "left_out": left_out})
    return shown


def shortened(value: Any) -> Any:
    """Return the plain data with only the begin and the end of each very long text."""
    if isinstance(value, Mapping):
        return {name: shortened(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shortened(member) for member in value]
    left_out = len(value) - _HEAD_CHARACTERS - _TAIL_CHARACTERS if isinstance(value, str) else 0
    if left_out <= 0:
        return value
    return f"{value[:_HEAD_CHARACTERS]}\n\n[... {left_out:,} characters left out ...]\n\n{value[-_TAIL_CHARACTERS:]}"


def _time_lines(run: RunData) -> dict[str, Any]:
    timed = spread_over(view_data.timed_steps(run.history), _TIMED_STEPS)
    lines = {step: view_data.time_line(run, step) for step in timed}
    # The time line of a step with a thousand actors is long, so the number of steps is limited by size.
    most = max(2, len(lines) * _MOST_CHARACTERS // max(1, len(_json(lines))))
    return {str(step): lines[step] for step in spread_over([*lines], most)}


def _json(data: Any) -> str:
    return json.dumps(data, allow_nan=False, ensure_ascii=False)


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
