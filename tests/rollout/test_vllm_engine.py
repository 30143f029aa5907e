"""The engine for vLLM, against a server that really samples. tests/rollout/test_vllm_real.py has vLLM itself."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from grpo_lightning.__main__ import main
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.engines.vllm import Launch, VLLMEngine
from grpo_lightning.rollout.engines.vllm.launch import server_command
from grpo_lightning.types import Completion
from tests.toy import Watch, fit, grpo, rollouts

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from tests.standin import Running, StandIn, running
from tests.tiny import save_tiny_model

SAMPLING = SamplingParams(max_new_tokens=24)
LIMIT_S = 120.0


@pytest.fixture
def engines() -> Iterator[Callable[..., VLLMEngine]]:
    """Makes engines, and stops them."""
    made: list[VLLMEngine] = []

    def make(*servers: Running, **options: object) -> VLLMEngine:
        made.append(VLLMEngine([server.url for server in servers], **{"restart_wait_s": 5.0} | options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def policy_of(path: str, rank: int | None = 4, seed: int = 1) -> Policy:
    """A policy whose adapter, or weights, have moved away from the server's."""
    policy = Policy(PolicyConfig(path=path, lora=None if rank is None else LoRAConfig(r=rank)))
    moved(policy, seed)
    return policy


def moved(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable_parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def requests(groups: int = 3, size: int = 4) -> list[Request]:
    return [
        Request([20 + group, 30, 40 + group], 100 * group + member) for group in range(groups) for member in range(size)
    ]


def started(engine: VLLMEngine, policy: Policy) -> VLLMEngine:
    engine.check(policy.config, 64, SAMPLING)
    engine.start(policy, 64)
    engine.push(policy, "step-0")
    return engine


def in_process(policy: Policy, wanted: Sequence[Request], sampling: SamplingParams = SAMPLING) -> list[Completion]:
    engine = InProcessEngine()
    engine.start(policy, 64)
    return engine.generate(wanted, sampling)


def agree(ours: Sequence[Completion], theirs: Sequence[Completion]) -> bool:
    """Whether completions have the same tokens, text and end, and log-probs but for rounding."""
    for one, other in zip(ours, theirs, strict=True):
        same = (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        if not same or one.logprobs != pytest.approx(other.logprobs, abs=1e-3):
            return False
    return True


# -- weights and completions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "merge_lora"), [(4, False), (4, True), (None, False)])
def test_completions_are_those_of_the_weights_that_were_pushed(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path, rank: int | None, merge_lora: bool
) -> None:
    policy = policy_of(path, rank)
    engine = started(engines(served, shared_dir=str(tmp_path), merge_lora=merge_lora), policy)
    assert agree(in_process(policy, requests()), engine.generate(requests(), SAMPLING))
    for step in (1, 2):
        moved(policy, step)
        engine.push(policy, f"step-{step}")
    assert agree(in_process(policy, requests()), engine.generate(requests(), SAMPLING))
    (folder,) = tmp_path.iterdir()
    assert isinstance(served.server, StandIn)
    if rank and not merge_lora:
        calls = [call.replace(f"{folder.name}-", "") for call in served.server.calls]
        # The one before the last is unloaded before a further one comes: the server has room for two.
        assert calls == [
            "load probe", "unload probe", "load step-0", "load step-1", "unload step-0", "load step-2",
        ]  # fmt: skip
        assert sorted(file.name for file in folder.iterdir()) == ["step-1", "step-2"]
    else:
        reloads = [f"reload step-{step}" for step in range(3)]
        assert served.server.calls == [call for reload in reloads for call in (reload, "reset cache")]
        assert [file.name for file in folder.iterdir()] == ["step-2"]
    engine.stop()
    assert list(tmp_path.iterdir()) == []
    assert list(served.server.models) == ["base"]


def test_stop_strings_temperatures_and_further_requests(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    policy = policy_of(path)
    engine = started(engines(served, shared_dir=str(tmp_path), rows_in_flight=3), policy)
    wanted = [Request(request.prompt, request.seed, 0.7) for request in requests(2)]
    text = max((completion.text for completion in in_process(policy, wanted)), key=len)
    sampling = SamplingParams(max_new_tokens=24, stop=[text[2]], stop_in_text=False)
    handed: list[int] = []

    def follow(numbers: list[int], completions: list[Completion]) -> list[Request]:
        handed.extend(numbers)
        return [Request([50, number], number) for number in numbers if number < 8]

    found = engine.generate(wanted, sampling, follow)
    assert sorted(handed) == list(range(16))
    assert agree(in_process(policy, wanted, sampling), found[:8])
    later = [handed.index(number) for number in range(8)]
    order = sorted(range(8), key=later.__getitem__)
    assert agree(in_process(policy, [Request([50, number], number) for number in order], sampling), found[8:])
    greedy = SamplingParams(temperature=0.0, max_new_tokens=12)
    assert [c.token_ids for c in engine.generate(wanted, greedy)] == [
        c.token_ids for c in in_process(policy, wanted, greedy)
    ]


def test_a_thousand_rows_are_in_flight_at_once(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    engine = started(engines(served, shared_dir=str(tmp_path)), policy_of(path))
    wanted = [Request([50, number % 90 + 4], number) for number in range(1100)]
    served.server.holds = True
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(engine.generate, wanted, SamplingParams(max_new_tokens=2))
        deadline = time.monotonic() + LIMIT_S
        while served.server.rows < engine.rows_in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        rows = served.server.rows
        served.server.holds = False
    assert rows == engine.rows_in_flight == 1024
    assert [len(completion.token_ids) <= 2 for completion in found.result()] == [True] * 1100


def test_a_run_takes_the_same_steps_as_in_process(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    refinement = RefinementConfig(budget=1)
    ours, theirs = Watch(), Watch()
    options = {"lora": LoRAConfig(r=4)}
    fit(tmp_path, grpo(path, **options), 3, rollouts(refinement=refinement), callbacks=[ours])
    engine = engines(served, shared_dir=str(tmp_path / "shared"))
    fit(tmp_path, grpo(path, **options), 3, rollouts(refinement=refinement, engine=engine), callbacks=[theirs])
    for one, other in zip(ours.batches, theirs.batches, strict=True):
        # Which failure gets the further attempt depends on which end together: the first attempts are compared.
        assert agree(
            [attempt.completion for attempt in one.first_attempts],
            [attempt.completion for attempt in other.first_attempts],
        )
    assert theirs.logged[-1]["policy/sampler_gap"] < 1e-4
    assert list((tmp_path / "shared").iterdir()) == []


# -- servers that fail ------------------------------------------------------------------------------------------------


def test_rows_of_a_server_that_dies_are_sampled_by_another(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy, stand_in = policy_of(path), StandIn(path)
    with running(stand_in) as second:
        engine = started(engines(served, second, shared_dir=str(tmp_path)), policy)
        killed = []

        def kill(numbers: list[int], completions: list[Completion]) -> list[Request]:
            if not killed:
                killed.append(second.kill())
            return []

        wanted = requests(groups=6, size=8)
        stand_in.holds = True
        with caplog.at_level(logging.WARNING):
            found = engine.generate(wanted, SAMPLING, kill)
        assert agree(in_process(policy, wanted), found)
        assert f"{second.url} is not used" in caplog.text
        # The next step goes on without it.
        engine.push(policy, "step-1")
        assert agree(in_process(policy, wanted), engine.generate(wanted, SAMPLING))


@pytest.mark.parametrize("rank", [4, None])
def test_a_server_that_was_restarted_gets_the_weights_again(
    path: str, engines: Callable[..., VLLMEngine], tmp_path: Path, rank: int | None
) -> None:
    policy = policy_of(path, rank)
    with running(StandIn(path)) as first:
        engine = started(engines(first, shared_dir=str(tmp_path)), policy)
        expected = engine.generate(requests(), SAMPLING)
        first.kill()
        with running(StandIn(path), first.port) as second:
            assert agree(expected, engine.generate(requests(), SAMPLING))
            assert len(second.server.calls) > 0


@pytest.mark.parametrize(
    ("rank", "seed", "changes", "message"),
    [
        (4, 1, {}, "it serves base, which does not sample from this policy: .*per token, more than max_gap=0.15"),
        (4, 0, {"max_model_len": 32}, "the server takes 32 tokens, and a prompt with its completion has up to 64"),
        (4, 0, {"raw_logprobs": True}, "the server returns raw log-probs, which leave the temperature out"),
        (None, 0, {"reloads": False}, "the server cannot reload weights without VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_that_was_restarted_as_another_one_is_not_used(
    path: str,
    served: Running,
    engines: Callable[..., VLLMEngine],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rank: int | None,
    seed: int,
    changes: dict,
    message: str,
) -> None:
    policy = policy_of(path, rank)
    other = StandIn(save_tiny_model(tmp_path / "other", "llama", seed=seed), **changes)
    with running(StandIn(path)) as first:
        engine = started(engines(first, served, shared_dir=str(tmp_path), restart_wait_s=0.5), policy)
        first.kill()
        with running(other, first.port), caplog.at_level(logging.WARNING):
            engine.push(policy, "step-1")
            # The run continues without it, and stops where the right one is gone too.
            assert agree(in_process(policy, requests()), engine.generate(requests(), SAMPLING))
            assert re.search(f"{first.url} is not used .*: {message}: start it with\n  VLLM_", caplog.text)
            served.kill()
            with pytest.raises(RunError, match=rf"no server is left: {first.url}: {message}: start it with\n  VLLM_"):
                engine.generate(requests(), SAMPLING)


def test_failed_completions_are_errors_not_completions(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    engine = started(engines(served, shared_dir=str(tmp_path), restart_wait_s=0.5), policy_of(path))
    server = served.server
    assert isinstance(server, StandIn)
    server.finish_as = "abort"
    with pytest.raises(RunError, match=r"3 attempts at a completion failed, .* ended a completion with 'abort'"):
        engine.generate(requests(1)[1:], SAMPLING)
    server.finish_as = None
    with pytest.raises(RunError, match=r"refused by .* exceed the 512 tokens of max_model_len"):
        engine.generate(requests(1), SamplingParams(max_new_tokens=512))
    server.fail_after = 2
    with pytest.raises(RunError, match=r"no server is left: .* \(HTTP 500: EngineCore"):
        engine.generate(requests(1), SAMPLING)
    served.kill()
    with pytest.raises(RunError, match=rf"no server is left: {served.url}: "):
        engine.generate(requests(1), SAMPLING)


def test_a_completion_that_was_cut_short_is_an_error(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    engine = started(engines(served, shared_dir=str(tmp_path)), policy_of(path))
    assert isinstance(served.server, StandIn)
    served.server.finish_as = "length"
    with pytest.raises(RunError, match="max-model-len is too small"):
        engine.generate(requests(4), SAMPLING)


def test_a_disk_that_cannot_be_written_ends_the_run_with_a_sentence(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    policy = policy_of(path)
    engine = started(engines(served, shared_dir=str(tmp_path)), policy)
    (folder,) = tmp_path.iterdir()
    (folder / ".step-1").write_text("in the way")
    with pytest.raises(RunError, match=r"data.engine.shared_dir: the weights cannot be written .*: free space there"):
        engine.push(policy, "step-1")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False)
    if mount.returncode != 0:
        pytest.skip(f"mounting a file system needs privileges: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_run_with_a_sentence(
    path: str, served: Running, engines: Callable[..., VLLMEngine], small_disk: Path
) -> None:
    engine = engines(served, shared_dir=str(small_disk))
    policy = policy_of(path, rank=None)
    engine.check(policy.config, 64, SAMPLING)
    engine.start(policy, 64)
    with pytest.raises(RunError, match=r"weights cannot be written to .*: .*No space left on device.*: free space"):
        engine.push(policy, "step-0")
    (small_disk / "filler").write_bytes(bytes(64 * 1024))
    with pytest.raises(ConfigError, match=r"shared_dir: .* cannot be written \(No space left on device\): free space"):
        engine.check(PolicyConfig(path, lora=LoRAConfig(r=4)), 64, SAMPLING)


# -- handshake --------------------------------------------------------------------------------------------------------

COMMAND = r"start it with\n  VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 python -m vllm.*--logprobs-mode processed_logprobs"


@pytest.mark.parametrize(
    ("server", "changes", "message"),
    [
        ({"max_model_len": 32}, {}, f"takes 32 tokens, and a prompt with its completion has up to 64: {COMMAND}"),
        ({"max_lora_rank": 2}, {}, f"adapters up to rank 2, and the policy's has 4: {COMMAND}"),
        ({"max_lora_rank": None}, {}, f"cannot load adapters without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1: {COMMAND}"),
        ({}, {"blind": True}, "shared_dir: .* does not see the folder"),
        ({"raw_logprobs": True}, {}, f"raw log-probs, which leave the temperature out: {COMMAND}"),
        ({"key": "secret"}, {}, "set the environment variable VLLM_API_KEY"),
    ],
)
def test_a_server_that_does_not_suit_is_found_before_the_model_loads(
    path: str, engines: Callable[..., VLLMEngine], tmp_path: Path, server: dict, changes: dict, message: str
) -> None:
    with running(StandIn(path, **server)) as served:
        vars(served.server).update(changes)
        with pytest.raises(ConfigError, match=message):
            engines(served, shared_dir=str(tmp_path)).check(PolicyConfig(path, lora=LoRAConfig(r=4)), 64, SAMPLING)


def test_full_weights_need_their_routes(path: str, engines: Callable[..., VLLMEngine], tmp_path: Path) -> None:
    with running(StandIn(path, reloads=False)) as served, pytest.raises(ConfigError, match="VLLM_SERVER_DEV_MODE=1"):
        engines(served, shared_dir=str(tmp_path)).check(PolicyConfig(path), 64, SAMPLING)


def test_full_weights_need_a_folder_that_the_server_sees(
    path: str, served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    served.server.blind = True  # type: ignore[attr-defined]
    with pytest.raises(
        RunError, match=r"it does not see the folder .*step-0: .* start it again with\n  VLLM_SERVER_DEV"
    ):
        started(engines(served, shared_dir=str(tmp_path), restart_wait_s=0.1), policy_of(path, rank=None))


def test_a_key_is_sent(
    path: str, engines: Callable[..., VLLMEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with running(StandIn(path, key="secret")) as served:
        engines(served, shared_dir=str(tmp_path)).check(PolicyConfig(path), 64, SAMPLING)


def test_another_base_model_is_found_after_the_first_push(
    tiny_model: Callable[[str], str], served: Running, engines: Callable[..., VLLMEngine], tmp_path: Path
) -> None:
    policy = policy_of(tiny_model("llama"))
    for parameter in policy.lm.parameters():
        parameter.data *= 1.3
    with pytest.raises(ConfigError, match=r"differ by [\d.]+ nats per token, more than max_gap=0.15"):
        started(engines(served, shared_dir=str(tmp_path)), policy)


def test_options_are_checked(tmp_path: Path) -> None:
    for options, message in [
        ({"urls": []}, "urls: give the address of at least one server"),
        ({"urls": ["127.0.0.1:8000"]}, "urls: give addresses such as"),
        ({"urls": ["http://a:1", "http://a:1"]}, "none twice"),
        ({"urls": ["http://other:1"], "launch": Launch("python")}, "launch: starts one server, on this machine"),
        ({"retries": -1}, "retries: must not be negative"),
        ({"timeout_s": 0}, "timeout_s: must be above 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            VLLMEngine(**{"urls": ["http://127.0.0.1:1"], "shared_dir": str(tmp_path)} | options)  # type: ignore[arg-type]
    engine = VLLMEngine(["http://127.0.0.1:1"], str(tmp_path))
    with pytest.raises(ConfigError, match="top_k, top_p and min_p do not go with VLLMEngine"):
        engine.check(PolicyConfig("x"), 64, SamplingParams(top_p=0.9))
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:1: no server answers"):
        engine.check(PolicyConfig("x"), 64, SamplingParams())
    engine.stop()


# -- servers that the engine starts -----------------------------------------------------------------------------------


def test_a_launched_server_that_dies_shows_its_log(path: str, tmp_path: Path) -> None:
    engine = VLLMEngine(["http://127.0.0.1:9"], str(tmp_path), launch=Launch(sys.executable))
    with pytest.raises(RunError, match=r"ended with status 1; .*vllm.log ends with:\n.*No module named"):
        engine.check(PolicyConfig(path), 64, SAMPLING)
    engine.stop()
    engine = VLLMEngine(["http://127.0.0.1:9"], str(tmp_path), launch=Launch(str(tmp_path / "python")))
    with pytest.raises(ConfigError, match=r"launch.python: .* cannot be started"):
        engine.check(PolicyConfig(path), 64, SAMPLING)
    engine.stop()


def test_the_whole_process_group_of_a_launched_server_ends(path: str, tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    script = tmp_path / "python"
    # As a vLLM server does: a worker that outlives it, and ignores the end of its parent.
    script.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/worker\necho ready\nsleep 600\n")
    script.chmod(0o755)
    engine = VLLMEngine(["http://127.0.0.1:9"], str(tmp_path), launch=Launch(str(script), timeout_s=0.5))
    with pytest.raises(RunError, match=r"did not answer within 0.5 seconds; .* ends with:\nready"):
        engine.check(PolicyConfig(path), 64, SAMPLING)
    worker = Path("/proc", (tmp_path / "worker").read_text().strip())
    assert worker.exists()
    engine.stop()
    time.sleep(0.05)
    assert not worker.exists() or "zombie" in (worker / "status").read_text()


# -- the command line -------------------------------------------------------------------------------------------------


def test_serve_command_prints_what_the_config_needs(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--config", "configs/quickstart.yaml", "--warm_start", "null", "--model.policy.path", path,
        "--data.task.init_args.val_size", "8", "--data.sampling.max_new_tokens", "40", "--data.engine", "VLLMEngine",
        "--data.engine.urls", "[http://a:81, http://b:82]", "--data.engine.shared_dir", "x",
    ]  # fmt: skip
    main(["serve-command", *options, "--model.policy.lora.r", "12"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 python -m vllm.entrypoints.openai.api_server --model ")
    assert "--host b --port 82 --dtype float32 --max-model-len 192" in second
    assert "--max-lora-rank 16 --max-loras 2 --max-cpu-loras 2" in second
    with pytest.raises(SystemExit, match="2"):
        main(["serve-command", *options, "--warm_start", "configs/quickstart_sft.yaml"])
    assert "(grpo fit --config quickstart_sft)" in capsys.readouterr().err


@pytest.mark.parametrize("written_by_code", [True, False])
def test_the_command_for_lfm2(tiny_model: Callable[[str], str], tmp_path: Path, written_by_code: bool) -> None:
    path = tiny_model("lfm2")
    if not written_by_code:  # a published checkpoint says them
        shutil.copytree(path, tmp_path, dirs_exist_ok=True)
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"conv_dim": 32, "block_dim": 32}))
        path = str(tmp_path)
    policy = PolicyConfig(path=path, lora=LoRAConfig(r=4))
    command = str(server_command(policy, "http://127.0.0.1:8000", 64, merge_lora=False))
    assert """--compilation-config '{"custom_ops": ["-rotary_embedding"]}'""" in command
    assert ("""--hf-overrides '{"conv_dim": 32, "block_dim": 32}'""" in command) == written_by_code
    # What is exported keeps keys that transformers does not know.
    if not written_by_code:
        Policy(policy).save_pretrained(tmp_path / "export", merged=True)
        assert json.loads((tmp_path / "export" / "config.json").read_text())["conv_dim"] == 32


def test_the_command_for_full_weights(path: str) -> None:
    for policy, merge_lora in [(PolicyConfig(path), False), (PolicyConfig(path, lora=LoRAConfig(r=4)), True)]:
        command = str(server_command(policy, "http://[::1]:8000", 65, merge_lora))
        assert command.startswith("VLLM_SERVER_DEV_MODE=1 python")
        assert "--host ::1 --port 8000 --dtype float32 --max-model-len 128" in command
        assert "lora" not in command
