"""The page docs/migrating.md, whose tables come from the keys of other trainers."""

from __future__ import annotations

from grpo.config.foreign_keys import FOREIGN_KEYS

_HEADER = """\
# From another trainer

`grpo config --migrating` writes this page from the table that also answers unknown keys. A test checks that the page is
current.

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


def markdown() -> str:
    """The page docs/migrating.md."""
    lines = [_HEADER]
    for trainer in dict.fromkeys(key.trainer for key in FOREIGN_KEYS):
        lines += [f"## {trainer}\n", "| key there | key here | what differs |", "|---|---|---|"]
        for key in FOREIGN_KEYS:
            if key.trainer == trainer:
                lines.append(f"| `{key.name}` | {f'`{key.ours}`' if key.ours else '-'} | {key.note} |")
        lines.append("")
    return "\n".join(lines)
