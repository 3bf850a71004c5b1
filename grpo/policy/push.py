"""Push a policy to the Hugging Face hub. Only `grpo push` does this."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

# The error of the hub's HTTP client, whichever client this release of huggingface_hub has: also a lost connection.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def push_policy(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload a policy's folder as one commit. Return the commit's URL.

    Args:
        folder: policy in Hugging Face format.
        repository: name on the hub, `owner/name`. It is created if it does not exist.
        public: whether a new repository is public. An existing repository stays as it is.
        message: message of the commit.

    Raises:
        ValueError: the name has another form, the folder holds no policy, nobody is logged in, or the hub refuses.
    """
    if not _NAME.fullmatch(repository):
        raise ValueError(f"{repository!r} is not a name on the hub; expected OWNER/NAME, for example me/my-policy")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no policy: expected config.json and *.safetensors; give a run or a policy")
    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message).commit_url)
    except LocalTokenNotFoundError as failure:
        raise ValueError(
            f"nobody is logged in to the hub ({failure}); run hf auth login, or set HF_TOKEN to a token that may write"
        ) from failure
    except (HfHubHTTPError, _HTTP_ERROR) as failure:
        raise ValueError(
            f"the hub did not take {repository!r}: {str(failure).splitlines()[0]}; check the name, the network, and "
            "that the token (HF_TOKEN, or hf auth login) may write there"
        ) from failure
