"""A folder to the Hugging Face hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from grpo_lightning.errors import ConfigError

log = logging.getLogger(__name__)


def check_hub(repo: str, key: str) -> None:
    """See before a run whether something could be pushed after it.

    Raises:
        ConfigError: the name is not one, nobody is logged in, or the hub is switched off.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{key}: {repo!r} is not a name on the hub, such as me/my-policy") from error
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{key}: HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or set {key} to null")
    if huggingface_hub.get_token() is None:
        raise ConfigError(f"{key}: nobody is logged in: run hf auth login, or set HF_TOKEN")


def push_folder(folder: Path, repo: str, private: bool) -> None:
    """Push a folder into a repository, which is made if it does not exist.

    The folder stays where it is whatever happens; a failure is a line in the log with the command to repeat. The config
    of an adapter on a local base names no base: the path says something on this machine alone.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi(endpoint=huggingface_hub.constants.ENDPOINT)
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        changes = [
            huggingface_hub.CommitOperationAdd(
                file.name, _without_local_base(file.read_bytes()) if file.name == "adapter_config.json" else file
            )
            for file in sorted(folder.iterdir())
        ]
        hub.create_commit(repo, changes, commit_message=f"{folder.name} of {folder.parent.name}")
    except Exception as error:  # whatever the hub or the network has, the run is complete
        log.warning(
            "export.push_to_hub: %s was not pushed: %s: %s; repeat it with hf upload %s %s",
            folder, type(error).__name__, " ".join(str(error).split())[:300], repo, folder,
        )  # fmt: skip
    else:
        log.info("pushed %s to %s/%s", folder, huggingface_hub.constants.ENDPOINT, repo)


def _without_local_base(adapter_config: bytes) -> bytes:
    """An adapter's config, with null for a base that is a folder."""
    config = json.loads(adapter_config)
    if not Path(config["base_model_name_or_path"]).exists():
        return adapter_config
    return json.dumps(config | {"base_model_name_or_path": None}, indent=2, sort_keys=True).encode()
