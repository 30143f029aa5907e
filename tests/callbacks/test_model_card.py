"""The model card of an exported policy, and pushing it to a stand-in for the hub."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from grpo_lightning.callbacks import PolicyExport
from grpo_lightning.callbacks.model_card import model_card
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig
from tests.toy import fit, grpo

CONFIG = {
    "seed_everything": 7,
    "trainer": {"max_steps": 10, "callbacks": None, "precision": "32-true", "logger": {"init_args": {"project": "x"}}},
    "model": {
        "class_path": "grpo_lightning.algorithms.GRPOModule",
        "init_args": {
            "policy": {"path": "org/base", "lora": None},
            "verifiers": [{"class_path": "grpo_lightning.verifiers.MathVerifier"}],
            "beta": 0.04,
        },
    },
    "data": {"task": {"class_path": "Tabular", "init_args": {"path": "openai/gsm8k", "system_prompt": "</think>"}}},
}
MADE_WITH = {
    "command": ["grpo", "fit", "--config", "/home/me/project/my.yaml", "--x=/data/rows.jsonl"],
    "device": "cpu: a processor",
    "versions": {"python": "3.11", "torch": "2.13.0"},
}


def card_of(
    folder: Path, base: str = "org/base", is_adapter: bool = False, **config: Any
) -> tuple[dict[str, Any], str]:
    """The head and the text below."""
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | config))
    (folder / "environment.json").write_text(json.dumps(MADE_WITH))
    card = model_card(folder, base, [("validation accuracy", "0.750 (95 % interval 0.7 to 0.8)")], is_adapter)
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_card_says_what_was_learned_from_what(tmp_path: Path) -> None:
    head, text = card_of(tmp_path)
    assert head == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "base_model": "org/base",
        "datasets": ["openai/gsm8k"], "tags": ["grpo-lightning", "reinforcement-learning"],
    }  # fmt: skip
    for line in (
        "| base | org/base |", "| method | GRPO |", "| data | Tabular openai/gsm8k |", "| verifier | MathVerifier |",
        "| validation accuracy | 0.750 (95 % interval 0.7 to 0.8) |", "beta: 0.04", "max_steps: 10",
        "seed_everything: 7", "grpo fit --config my.yaml --x=rows.jsonl", "torch 2.13.0", "cpu: a processor.",
        "</think>",
    ):  # fmt: skip
        assert line in text
    assert "null" not in text
    assert "project" not in text, "only what was learned and how"
    assert card_of(tmp_path, is_adapter=True)[0]["library_name"] == "peft"


def test_no_local_path_is_in_it(tmp_path: Path) -> None:
    local = tmp_path / "models" / "small"
    local.mkdir(parents=True)
    task = {"class_path": "Tabular", "init_args": {"path": str(tmp_path / "rows.jsonl")}}
    head, text = card_of(tmp_path, str(local), data={"task": task})
    assert "base_model" not in head
    assert "datasets" not in head
    assert "| base | small |" in text
    assert "| data | Tabular rows.jsonl |" in text
    assert not any(part in text for part in (str(tmp_path), "/home", "/data"))


def test_a_warm_start_is_traced_to_its_base(tmp_path: Path) -> None:
    warm = tmp_path / "warm_start"
    (warm / "policy").mkdir(parents=True)
    policy = {"path": "org/first", "init": "random"}
    (warm / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"policy": policy}}}))
    head, text = card_of(tmp_path, str(warm / "policy"))
    assert head["base_model"] == "org/first"
    assert "| base | org/first, after a supervised warm start, from random weights |" in text


def test_a_run_from_python_has_a_card_too(tmp_path: Path) -> None:
    card = model_card(tmp_path, "org/base", [], is_adapter=False)
    assert "| base | org/base |" in card
    assert "Settings" not in card


# -- the hub -----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a push of small files needs."""

    files: dict[str, bytes]
    repositories: list[dict[str, Any]]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).refuses:
            self.answer({"error": "no room"}, 403)
        elif self.path == "/api/repos/create":
            self.repositories.append(json.loads(body))
            self.answer({"url": "https://huggingface.co/me/policy", "id": "me/policy"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer({"commitUrl": "https://huggingface.co/me/policy/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/policy", "siblings": [], "sha": "0", "private": True})

    def answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    kind: type[Hub] = type("OneHub", (Hub,), {"files": {}, "repositories": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    huggingface_hub.close_session()
    yield kind
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def test_the_adapter_is_pushed_with_its_card(hub: type[Hub], tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    export = PolicyExport(push_to_hub="me/policy")
    fit(tmp_path, grpo(tiny_model("llama"), lora=LoRAConfig(r=2)), 1, callbacks=[export])
    (made,) = hub.repositories
    assert made["name"] == "policy"
    assert made["visibility"] == "private"
    pushed = {file.name: file.read_bytes() for file in (tmp_path / "policy").iterdir()}
    # What is pushed does not name a local folder as the base; what stays is loaded by that.
    stays, goes = (json.loads(files.pop("adapter_config.json")) for files in (pushed, hub.files))
    assert (stays["base_model_name_or_path"], goes["base_model_name_or_path"]) == (tiny_model("llama"), None)
    assert goes == stays | {"base_model_name_or_path": None}
    assert hub.files == pushed
    assert {"README.md", "adapter_model.safetensors", "tokenizer.json"} <= set(pushed)
    assert b"library_name: peft" in pushed["README.md"]
    # A dry run writes nothing, so it does not push what is there either.
    hub.files.clear()
    fit(tmp_path, grpo(tiny_model("llama"), lora=LoRAConfig(r=2)), 1, callbacks=[export], fast_dev_run=True)
    assert not hub.files


def test_a_push_that_fails_costs_no_run(
    hub: type[Hub], tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.refuses = True
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        export = PolicyExport(push_to_hub="me/policy", private=False)
        fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[export])
    assert (tmp_path / "policy/README.md").is_file()
    assert f"repeat it with hf upload me/policy {tmp_path / 'policy'}" in caplog.text
    assert "hf_secret" not in caplog.text


def test_what_cannot_be_pushed_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refusal(repo: str) -> str:
        with pytest.raises(ConfigError) as caught:
            PolicyExport(push_to_hub=repo).setup(None, None, "fit")  # type: ignore[arg-type]
        return str(caught.value)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert refusal("a/b/c") == "export.push_to_hub: 'a/b/c' is not a name on the hub, such as me/my-policy"
    assert "nobody is logged in: run hf auth login" in refusal("me/policy")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal("me/policy")
    with pytest.raises(ConfigError, match=r"nothing is written with export\.enabled=false"):
        PolicyExport(push_to_hub="me/policy", enabled=False)
