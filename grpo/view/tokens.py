"""The text of each token of a stored completion, from the tokenizer that lies beside a run. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from grpo.report import run_files

_FILE = "tokenizer.json"


def find_tokenizer(run_dir: Path, policy_path: str | None) -> Path | None:
    """Where the run's tokenizer is: in its newest checkpoint, its `policy/`, or the policy that it started from."""
    exported = sorted(run_dir.glob(f"checkpoints/*/policy/{_FILE}"))
    started = [Path(policy_path) / _FILE] if policy_path else []
    return next(
        (path for path in (*reversed(exported), run_dir / run_files.POLICY / _FILE, *started) if path.is_file()), None
    )


def pieces(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds; empty for one that only begins a character, which the next one then ends."""
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, token) or "" for token in token_ids]
