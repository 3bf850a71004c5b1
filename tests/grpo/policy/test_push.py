"""`grpo push`, with a stand-in for the hub: no test sends anything anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from tiny_policy import make_tiny_policy
from typer.testing import CliRunner, Result

from grpo.cli.app import app


class Hub:
    """Notes what is created and uploaded."""

    def __init__(self) -> None:
        self.created: list[tuple[str, bool]] = []
        self.uploaded: list[tuple[str, set[str], str]] = []
        self.failure: Exception | None = None

    def __call__(self) -> Hub:
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        if self.failure:
            raise self.failure
        assert exist_ok
        self.created.append((name, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        self.uploaded.append((repo_id, {path.name for path in folder_path.iterdir()}, commit_message))
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/1", commit_message="", commit_description="", oid="1"
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in)
    return stand_in


def push(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, ["push", *map(str, words)])


def test_the_newest_policy_of_a_run_is_pushed_in_private(hub: Hub, tmp_path: Path) -> None:
    make_tiny_policy(tmp_path / "run" / "checkpoints" / "step_000005" / "policy")
    done = push(tmp_path / "run", "me/sums")
    assert done.exit_code == 0 and "pushed: https://huggingface.co/me/sums/commit/1" in done.output
    assert hub.created == [("me/sums", True)]
    ((name, files, message),) = hub.uploaded
    assert name == "me/sums" and {"config.json", "model.safetensors"} <= files and message
    assert push(tmp_path / "run", "me/sums", "--public").exit_code == 0 and hub.created[1] == ("me/sums", False)


def test_what_cannot_be_pushed_is_told_before_the_hub_is_asked(hub: Hub, tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    done = push(policy, "sums")
    assert done.exit_code == 2 and "'sums' is not a name on the hub; expected OWNER/NAME" in done.output
    done = push("nobody/knows", "me/sums")
    assert done.exit_code == 2 and "holds no policy: expected config.json" in done.output
    assert hub.created == hub.uploaded == []
    hub.failure = LocalTokenNotFoundError("no token")
    done = push(policy, "me/sums")
    assert done.exit_code == 2 and "nobody is logged in to the hub (no token); run hf auth login" in done.output
    hub.failure = HfHubHTTPError.__bases__[0]("connection refused")
    done = push(policy, "me/sums")
    assert done.exit_code == 2 and "the hub did not take 'me/sums': connection refused; check the name" in done.output
