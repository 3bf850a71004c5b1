"""What the page of `grpo view` shows, as plain data made from run folders; nothing is served or drawn here.

Every text that a policy, a dataset or a folder's name may have chosen goes through `visible`, so that the page cannot
be reordered or silently cut by it. That it never becomes markup is the page's part, which only ever sets text.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from tokenizers import Tokenizer

from grpo import audit
from grpo.closing_table import closing_table
from grpo.hacking_flags import Sampled, hacking_flags
from grpo.html_report import CONFIG_NAME, mismatch_alarm_of, mismatch_chart, plain, visible
from grpo.metrics_log import FILE_NAME, History, read_history, run_names
from grpo.rollout_index import STATUSES, Filter, Order, RolloutIndex
from grpo.rollout_store import (
    EVALUATIONS,
    FOLDER_NAME,
    step_path,
    stored_steps,
)
from grpo.step_time import TIMED_PARTS, step_time
from grpo.svg_chart import Chart, line_chart, step_time_chart
from grpo.token_text import find_tokenizer, pieces

SOURCES = {"training": FOLDER_NAME, "held-out": EVALUATIONS}
MAIN_METRICS = {
    "eval/accuracy": "Held-out accuracy",
    "reward/mean": "Mean reward",
    "rollout/completion_tokens_mean": "Completion length, tokens",
    "time/step_s": "Step time, seconds",
}
# Where an axis begins and ends whatever was measured, so that a glance is not misled by noise.
_AXES = {
    "eval/accuracy": (0.0, 1.0),
    "rollout/accuracy": (0.0, 1.0),
    "rollout/completion_tokens_mean": (0.0, None),
    "time/step_s": (0.0, None),
}
MISMATCH_METRICS = (
    "sync/probe_mean_difference",
    "learner/ratio_p01",
    "learner/ratio_p99",
    "learner/ratio_max",
    "learner/effective_sample_share",
    "learner/masked_share",
    "learner/importance_weight",
)
# Who is busy in a phase of a step. One that is not named here is shown under its own name.
ACTORS = {"generate": "generators", "verify": "verifiers", "learn": "learner", "sync": "weight sync"}
_COLOURS = 6
# Tokens of one completion that are sent with their log-probabilities; the whole text always is.
_MOST_TOKENS = 4000
# What the flags read of a run: enough for shares of some percent, in well under a second.
_FLAG_STEPS, _FLAG_COMPLETIONS = 24, 128
_Found = TypeVar("_Found")


class RunData:
    """One run folder, read as far as something was asked, and again where its files have changed."""

    def __init__(self, run_dir: Path, name: str) -> None:
        """Check that there is a run.

        Raises:
            ValueError: the folder holds neither metrics nor stored completions.
        """
        if not (run_dir / FILE_NAME).is_file() and not stored_steps(run_dir):
            raise ValueError(
                f"{run_dir} holds no run: neither {FILE_NAME} nor {FOLDER_NAME}/; give the folder of a run, its "
                "run.folder"
            )
        self.run_dir, self.name = run_dir, name
        self.indexes = {source: RolloutIndex(run_dir, folder) for source, folder in SOURCES.items()}
        self._kept: dict[str, tuple[object, Any]] = {}

    @property
    def history(self) -> History:
        """The metrics as they are now.

        Raises:
            ValueError: a line of the file is not one of ours.
        """
        return self._cached("history", _stamp(self.run_dir / FILE_NAME), lambda: read_history(self.run_dir))

    @property
    def config(self) -> str:
        """The resolved config's text, empty where there is none."""
        path = self.run_dir / CONFIG_NAME
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def stamp(self) -> tuple[object, ...]:
        """Changes whenever there is something new to show."""
        versions = tuple(index.snapshot.version for index in self.indexes.values())
        return (_stamp(self.run_dir / FILE_NAME), _stamp(self.run_dir / audit.FILE_NAME), *versions)

    def audit_rows(self) -> tuple[Mapping[str, Any], ...]:
        """What `grpo audit` wrote, nothing where it was not run."""
        path = self.run_dir / audit.FILE_NAME
        if not path.is_file():
            return ()
        lines = path.read_text(encoding="utf-8").splitlines()
        return self._cached("audit", _stamp(path), lambda: tuple(json.loads(line) for line in lines))

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies beside the run, if one does."""
        try:
            policy = (yaml.safe_load(self.config) or {}).get("policy") or {}
        except (yaml.YAMLError, AttributeError):
            policy = {}
        path = find_tokenizer(self.run_dir, policy.get("path"))
        if path is None:
            return None
        return self._cached("tokenizer", (path, _stamp(path)), lambda: Tokenizer.from_file(str(path)))

    def flags(self) -> list[dict[str, Any]]:
        """Signs of reward hacking, as `hacking_flags` finds them."""

        def make() -> list[dict[str, Any]]:
            found = hacking_flags(self.history, self._sampled(), self.audit_rows())
            return [shown(dataclasses.asdict(flag)) for flag in found]

        return self._cached("flags", self.stamp, make)

    def _sampled(self) -> list[Sampled]:
        snapshot = self.indexes["training"].snapshot
        steps = sorted(set(snapshot.step_N.tolist()))
        chosen = {steps[round(at * (len(steps) - 1) / (_FLAG_STEPS - 1))] for at in range(_FLAG_STEPS)} if steps else ()
        sampled = []
        for step in sorted(chosen):
            rows = [int(row) for row in (snapshot.step_R == step).nonzero()[0]]
            for row in rows[:: max(1, len(rows) // _FLAG_COMPLETIONS)]:
                group, reward = int(snapshot.group_R[row]), float(snapshot.reward_R[row])
                sampled.append(
                    Sampled(
                        step,
                        int(snapshot.groups_N[group]),
                        snapshot.prompt_id_N[group].as_py(),
                        None if math.isnan(reward) else reward,
                        snapshot.text_R[row].as_py(),
                    )
                )
        return sampled

    def _cached(self, name: str, stamp: object, make: Callable[[], _Found]) -> _Found:
        kept = self._kept.get(name)
        if kept is None or kept[0] != stamp:
            kept = self._kept[name] = (stamp, make())
        found: _Found = kept[1]
        return found


def open_runs(folders: Sequence[Path]) -> tuple[RunData, ...]:
    """The runs to look at, each with a name that tells it from the others."""
    return tuple(RunData(Path(folder), name) for folder, name in zip(folders, run_names(folders), strict=True))


def state(runs: Sequence[RunData]) -> dict[str, Any]:
    """What changes while a run goes on; the page asks for the rest again when `version` does."""
    return {
        "version": str(abs(hash(tuple(run.stamp for run in runs)))),
        "unread": sum(index.unread for run in runs for index in run.indexes.values()),
    }


def overview(runs: Sequence[RunData]) -> dict[str, Any]:
    """The runs with their outcomes, the main curves, and the names of all others by their first word."""
    histories = [run.history for run in runs]
    names = sorted({name for history in histories for name in history.names()} - {"time/run_s"})
    sections: dict[str, list[str]] = {}
    for name in names:
        sections.setdefault(name.split("/")[0], []).append(name)
    return shown(
        {
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.run_dir),
                    "table": closing_table(run.name, history).rows,
                    "last_step": history.last_step(),
                    "last_time": history.lines[-1].time if history.lines else None,
                    "stored": list(stored_steps(run.run_dir)),
                    "evaluated": list(stored_steps(run.run_dir, EVALUATIONS)),
                    "timed": [line.step for line in history.lines if "time/step_s" in line.metrics],
                    "config": run.config,
                }
                for run, history in zip(runs, histories, strict=True)
            ],
            "statuses": STATUSES,
            "sections": [{"name": name, "metrics": members} for name, members in sections.items()],
        }
    ) | {"main": charts(runs, _main_metrics(names))}


def _main_metrics(names: Sequence[str]) -> list[str]:
    # Supervised fine-tuning earns no reward; a policy-gradient loss, where there is one, says nothing to a reader.
    first = [] if "reward/mean" in names else ["learner/loss"]
    return [name for name in (*first, *MAIN_METRICS) if name in names]


def charts(runs: Sequence[RunData], names: Sequence[str]) -> list[dict[str, Any]]:
    """One chart for each metric, a line for each run in the run's own colour."""
    histories = {run.name: run.history for run in runs}
    lines = [line for history in histories.values() for line in history.lines]
    span = (min((line.step for line in lines), default=0), max((line.step for line in lines), default=0))
    styles = {run.name: f"r{at % _COLOURS + 1}" for at, run in enumerate(runs)}
    found = []
    for name in names:
        curves = {run: history.curve(name) for run, history in histories.items()}
        few = tuple(histories) if name.startswith("eval/") else ()
        low, high = _AXES.get(name, (None, None))
        chart = line_chart(MAIN_METRICS.get(name, name), curves, span, low=low, high=high, dotted=few)
        if chart:
            shapes = (dataclasses.replace(shape, style=styles[shape.label]) for shape in chart.shapes)
            found.append({"metric": name} | _plain_chart(dataclasses.replace(chart, shapes=tuple(shapes))))
    return found


def list_groups(
    run: RunData, source: str, wanted: Filter, order: Order = "newest", offset: int = 0, limit: int = 100
) -> dict[str, Any]:
    """The groups with a completion that passes the filter, from `offset` on."""
    index = run.indexes[source]
    snapshot, found = index.search(wanted, order)
    return {
        "groups": len(found.groups),
        "completions": found.completions,
        "of_groups": len(snapshot.first_N),
        "of_completions": len(snapshot.step_R),
        "unread": index.unread,
        "problems": [visible(told) for told in index.problems.values()],
        "rows": shown([row | {"prompt": row["prompt"][:200]} for row in snapshot.rows(found, offset, limit)]),
    }


def group_detail(run: RunData, source: str, step: int, group: int, *, tokens: bool = False) -> dict[str, Any]:
    """One group, whole: prompt, reference, and each completion with its verdicts and, if asked for, its tokens.

    Raises:
        LookupError: that group is not stored (any more).
    """
    path = step_path(run.run_dir, step, SOURCES[source])
    if not path.is_file():
        raise LookupError(f"no completions of step {step} are stored")
    table = pq.read_table(path)
    rows = table.filter(pc.equal(table["group"], group)).to_pylist()
    if not rows:
        raise LookupError(f"step {step} has no group {group}")
    tokenizer = run.tokenizer() if tokens else None
    completions = []
    for row in rows:
        versions = sorted({span["policy_version"] for span in row["spans"]})
        one = {name: row[name] for name in ("sample", "completion", "completion_tokens", "finish_reason", "verdicts")}
        one |= {"reward": row["reward"], "advantage": row["advantage"], "versions": versions}
        completions.append(one | ({"tokens": _tokens(row, tokenizer)} if tokens else {}))
    first = rows[0]
    return shown(
        {
            **{name: first[name] for name in ("step", "group", "prompt_id", "prompt")},
            "reference": plain(first["reference"]),
            "row": first["row"],
            "has_tokenizer": tokenizer is not None,
            "completions": completions,
        }
    )


def _tokens(row: Mapping[str, Any], tokenizer: Tokenizer | None) -> list[list[Any]]:
    """[text, log-probability, policy version] of each token."""
    ids = row["token_ids"][:_MOST_TOKENS]
    texts = pieces(tokenizer, ids) if tokenizer else [f"{token} " for token in ids]
    versions = [span["policy_version"] for span in row["spans"] for _ in range(span["start"], span["stop"])]
    logprobs = [round(logprob, 4) for logprob in row["logprobs"][: len(ids)]]
    return [list(one) for one in zip(texts, logprobs, versions[: len(ids)], strict=True)]


def mismatch(run: RunData) -> dict[str, Any]:
    """How far learner and generators are apart, and what is done about it."""
    history, alarm = run.history, mismatch_alarm_of(run.config)
    first = history.curve("learner/mismatch_kl_first").finite()
    chart = mismatch_chart(history, alarm)
    return shown(
        {
            "alarm": alarm,
            "last": first.values[-1] if first else None,
            "worst": max(first.values) if first else None,
            "worst_step": first.steps[first.values.index(max(first.values))] if first else None,
            "above": [step for step, value in zip(first.steps, first.values, strict=True) if alarm and value > alarm],
        }
    ) | {
        "charts": [
            *([{"metric": "learner/mismatch_kl_first"} | _plain_chart(chart)] if chart else []),
            *charts([run], MISMATCH_METRICS),
        ]
    }


def time_line(run: RunData, step: int) -> dict[str, Any]:
    """Who was busy when in a step: a lane for each actor, seconds since the step began.

    Raises:
        LookupError: the run did not time that step.
    """
    line = next((line for line in run.history.lines if line.step == step), None)
    if line is None or not math.isfinite(line.metrics.get("time/step_s", math.nan)):
        raise LookupError(f"step {step} was not timed")
    seconds = line.metrics
    phases = [name[5:-7] for name in seconds if name.startswith("time/") and name.endswith("_from_s")]
    recorded, at = bool(phases), 0.0
    spans = []
    for phase in phases or [phase for phase in TIMED_PARTS if f"time/{phase}_s" in seconds]:
        begin = seconds[f"time/{phase}_from_s"] if recorded else at
        at = begin + seconds.get(f"time/{phase}_s", 0.0)
        spans.append({"actor": ACTORS.get(phase, phase), "phase": phase, "from": begin, "to": at})
    end = seconds["time/step_s"]
    for phase, actor in (("eval", "generators"), ("checkpoint", "learner")):
        length = seconds.get(f"time/{phase}_s", 0.0)
        if length:
            spans.append({"actor": actor, "phase": phase, "from": end, "to": end + length})
            end += length
    whole = step_time(run.history)
    return shown(
        {
            "step": step,
            "seconds": seconds["time/step_s"],
            "end": end,
            "recorded": recorded,
            "lanes": [
                {"actor": actor, "spans": [span for span in spans if span["actor"] == actor]}
                for actor in dict.fromkeys(span["actor"] for span in spans)
            ],
            "compute": seconds.get("learner/compute_s"),
        }
    ) | {"chart": _plain_chart(step_time_chart(whole)) if whole else None}


def _plain_chart(chart: Chart) -> dict[str, Any]:
    return shown(dataclasses.asdict(chart))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return (stat.st_mtime_ns, stat.st_size)


def shown(value: _Found) -> _Found:
    """The same plain data with every text made visible and every number that JSON does not know as None."""
    found: _Found = _shown(value)
    return found


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {visible(name): _shown(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    return value
