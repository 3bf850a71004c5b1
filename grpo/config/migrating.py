"""Explain keys and values of other trainers: hints for a config that has them, and the page docs/migrating.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from grpo.config.foreign_keys import FOREIGN_KEYS, ForeignKey


class ForeignDefault(NamedTuple):
    """A default of other trainers that differs from ours.

    Attributes:
        ours: key here. The page takes its default from the schema.
        verl: default in verl 0.9.1.
        trl: default in TRL 1.16.0.
    """

    ours: str
    verl: str
    trl: str


DEFAULTS = (
    ForeignDefault("rollout.group_size", "1", "8"),
    ForeignDefault("algorithm.clip_high", "0.2", "0.2"),
    ForeignDefault("algorithm.dual_clip", "3", "none (`delta`)"),
    ForeignDefault(
        "algorithm.proximal",
        "`recomputed`: the learner computes the old log-probabilities again",
        "`recomputed`; with vLLM, sequences whose ratio to the sampler is above 3 are left out",
    ),
    ForeignDefault("policy.dtype", "bfloat16, with weights kept in float32", "bfloat16, with weights as loaded"),
    ForeignDefault("learner.betas", "0.9, 0.999", "0.9, 0.999"),
    ForeignDefault("learner.weight_decay", "0.01", "0"),
    ForeignDefault("learner.schedule", "`constant`", "`linear`"),
    ForeignDefault("learner.gradient_checkpointing", "true (1)", "true (1)"),
    ForeignDefault("cluster.share_gpus", "true: sampling and training on the same GPUs", "true"),
)

_HEADER = """\
# From another trainer

`grpo config --migrating` writes this page from the table that also answers unknown keys and values. A test
checks that the page is current.

You need not search here: write your old keys into a config, and `grpo check` names the key here for each of them. On
the command line, `grpo config num_generations` does the same for one key.

- **Data.** The files of verl and TRL are read as they are: [data.md](data.md#rows-of-published-data-sets).
- **Reward functions** become verifiers: `use: my_file.py:function` ([verifiers.md](verifiers.md)).
- **Batches.** A step has `rollout.prompts_per_step` prompts with `rollout.group_size` completions each.
  `algorithm.minibatches` is the number of optimizer steps in a step. Microbatches have a limit of tokens
  (`learner.microbatch_tokens`), so there is no batch size of one device, and no gradient accumulation to choose.
- **Methods** have names: `algorithm.preset=dapo` sets the choices together ([objectives.md](objectives.md)).
- **A value can be copied** where the last column is empty. A dash means that there is no such key; the last column says
  why.
"""


_DEFAULTS_HEADER = """\
## Defaults that differ

A config that does not name a key gets the default of the trainer. These defaults differ from verl 0.9.1 or TRL 1.16.0:

| key here | default here | verl | TRL |
|---|---|---|---|"""

_STEPS = """
**Steps.** `train.steps`, `train.checkpoint_every` and `evaluation.every` count rollout steps; `learner.warmup_steps`
counts optimizer steps, `algorithm.minibatches` in each rollout step. TRL's `max_steps`, `save_steps`, `eval_steps` and
`warmup_steps` all count optimizer steps. verl counts rollout steps, in `lr_warmup_steps` too.
"""


def markdown(ours: Mapping[str, str]) -> str:
    """The page docs/migrating.md.

    Args:
        ours: our default of each key, by the key's name (`grpo.config.reference.defaults`).
    """
    lines = [_HEADER, _DEFAULTS_HEADER]
    lines += [f"| `{key.ours}` | `{ours[key.ours]}` | {key.verl} | {key.trl} |" for key in DEFAULTS]
    lines.append(_STEPS)
    for trainer in dict.fromkeys(key.trainer for key in FOREIGN_KEYS):
        lines += [f"## {trainer}\n", "| key there | key here | what differs |", "|---|---|---|"]
        for key in FOREIGN_KEYS:
            if key.trainer == trainer:
                lines.append(f"| `{key.name}` | {f'`{key.ours}`' if key.ours else '-'} | {key.note} |")
        lines.append("")
    return "\n".join(lines)


_BY_NAME: dict[str, list[ForeignKey]] = defaultdict(list)
# Keys in sections, by their last words: people leave sections out. Short words have too many meanings.
_BY_LAST_WORD: dict[str, list[ForeignKey]] = defaultdict(list)
for _key in FOREIGN_KEYS:
    _BY_NAME[_key.name].append(_key)
    # A word that is also ours is a misspelt section here.
    if "_" in (_last := _key.name.rsplit(".", 1)[-1]) and _last != _key.ours.rsplit(".", 1)[-1]:
        _BY_LAST_WORD[_last].append(_key)


def foreign_hints(path: str, value: Any) -> list[str]:
    """Return a sentence for each key of other trainers at or under an unknown key; empty if there is none.

    Args:
        path: dotted name of the unknown key in the user's file.
        value: its value; a mapping is searched too.
    """
    hints: list[str] = []
    unknown: list[str] = []
    for leaf, given in _leaves(path, value):
        keys = _keys_of(leaf)
        if keys:
            hints.append(f"{leaf} is not a known key; {_hint(keys, given)}")
        else:
            unknown.append(leaf)
    if hints and unknown:
        names = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        hints.append(f"{names}: not known here, nor in the table of keys of other trainers (docs/migrating.md)")
    return hints


def value_hint(key: str, value: Any) -> str:
    """Return a sentence for a value of other trainers at a key here; empty if the table does not translate it."""
    trainers_by_value: dict[str, list[str]] = defaultdict(list)
    for each in FOREIGN_KEYS:
        if each.ours == key and str(value) in each.values:
            trainers_by_value[each.values[str(value)]].append(each.trainer)
    return "; ".join(
        f"write {key}={ours}, which is {value!r} of {' and '.join(dict.fromkeys(names))}"
        for ours, names in trainers_by_value.items()
    )


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value or _keys_of(path):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{path}.{key}", inner)


def _keys_of(path: str) -> Sequence[ForeignKey]:
    """The keys with this whole name; or, for trainers without sections, with its last word; or that end with it."""
    last = path.rsplit(".", 1)[-1]
    return _BY_NAME.get(path) or _BY_NAME.get(last) or _BY_LAST_WORD.get(last) or ()


def _hint(keys: Sequence[ForeignKey], value: Any) -> str:
    """One sentence; if trainers share a name but not its meaning, each gets a clause."""
    trainers_by_text: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        note = f" ({key.note})" if key.note and key.ours else key.note
        ours = f"{key.ours}={translated}" if (translated := key.values.get(str(value))) else key.ours
        trainers_by_text[f"write {ours}{note}" if key.ours else f"leave it out: {note}"].append(key.trainer)
    return "; ".join(f"it is a key of {' and '.join(names)}: {text}" for text, names in trainers_by_text.items())
