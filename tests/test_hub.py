"""What is said of a model or data set that neither the disk nor the hub has, and how soon."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoTokenizer

from grpo_lightning import hub
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.models.loading import load_model
from grpo_lightning.models.tokenizer import load_tokenizer
from grpo_lightning.tasks import Tabular


def endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Have the hub on a port of this machine, and nothing known of it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_looked_up", None)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen: a connection is refused
        endpoint(monkeypatch, bound.getsockname()[1])
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield


def test_a_hub_that_listens_is_reachable_and_one_that_does_not_is_not(
    no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hub.is_reachable()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        endpoint(monkeypatch, port)
        assert hub.is_reachable()
        # A proxy stands for the hub: whether the hub itself answers is known to it alone.
        endpoint(monkeypatch, 1)
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
        assert hub.is_reachable()


def test_without_a_hub_a_name_fails_at_once_with_one_sentence(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/smollm2-135m").mkdir(parents=True)
    calls: list[Any] = [
        lambda path: load_tokenizer(path), lambda path: load_model(PolicyConfig(path)),
        lambda path: Tabular(path).prompts("train"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigError) as found:
            call("models/smollm2-135")
        said = str(found.value)
        assert "there is no folder models/smollm2-135 (did you mean models/smollm2-135m?)" in said
        assert "it is not in the local cache of the hub, and http://127.0.0.1:" in said
        assert "\n" not in said
    assert not constants.HF_HUB_OFFLINE, "as it was: the next attempt may reach it"
    with pytest.raises(ConfigError, match=r"no folder a/b/c, and only a name of the form owner/name is looked for on"):
        load_model(PolicyConfig("a/b/c"))
    with pytest.raises(ConfigError, match=r"no tokenizer found in the folder models/smollm2-135m"):
        load_tokenizer("models/smollm2-135m")


def test_the_cache_is_used_without_a_hub(no_hub: None, tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "configs/tiny_decoder"
    commit = tmp_path / "cache/models--me--tiny/snapshots/0000"
    commit.mkdir(parents=True)
    for file in folder.iterdir():
        (commit / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cache/models--me--tiny/refs").mkdir()
    (tmp_path / "cache/models--me--tiny/refs/main").write_text("0000")
    theirs = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert load_tokenizer("me/tiny").get_vocab() == theirs


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("owner/name", True), ("gpt2", True), ("Qwen/Qwen2.5-0.5B", True), ("./a", False), ("a/b/c", False),
        ("~/a", False), ("/a", False), ("a b", False), ("a/", False), ("", False),
    ],
)  # fmt: skip
def test_what_may_be_a_name_on_the_hub(path: str, named: bool) -> None:
    assert hub.is_name(path) is named
