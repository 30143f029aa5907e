"""The engine against vLLM itself, on the CPU. Opt-in, for it takes minutes and 4 GB for each server:

GRPO_VLLM_PYTHON=~/vllm/bin/python pytest -m vllm -n0

docs/scaling.md says how to make that environment.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpo_lightning.__main__ import main
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.engines.vllm import Launch, VLLMEngine
from grpo_lightning.rollout.engines.vllm.client import Client
from grpo_lightning.rollout.engines.vllm.launch import ServerCommand, ServerProcess, server_command
from grpo_lightning.types import Completion
from tests.tiny import save_tiny_model, tiny_tokenizer
from tests.toy import Watch, fit, grpo, rollouts

ROUNDING = 3e-4
"""The largest difference of a log-prob in float32 between vLLM and ours. 1.5e-4 was seen, with 200-token prompts."""

PYTHON = os.environ.get("GRPO_VLLM_PYTHON", "")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="GRPO_VLLM_PYTHON does not name the Python of an environment with vLLM"),
]

ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ARGS = ["--enforce-eager", "--max-num-batched-tokens", "16384"]
LONGEST = 320
SAMPLING = SamplingParams(max_new_tokens=40)


SIZES = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
"""vLLM's attention on a CPU takes heads of 32 and more."""


@pytest.fixture
def kind() -> str:
    return "llama"


@pytest.fixture
def path(kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp(kind), kind, **SIZES)


@pytest.fixture
def free_port() -> Callable[[], int]:
    def port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return int(taken.getsockname()[1])

    return port


@pytest.fixture
def launched(kind: str, free_port: Callable[[], int], tmp_path: Path) -> Iterator[Callable[..., VLLMEngine]]:
    """Makes engines that start a server, and stops them."""
    made = []
    # For its prefix cache vLLM prefills an LFM2 in parts, which a CPU cannot with seeds.
    uncached = ["--no-enable-prefix-caching"] if kind == "lfm2" else []

    def make(**options: object) -> VLLMEngine:
        launch = Launch(PYTHON, [*ARGS, *uncached], ENV)
        made.append(VLLMEngine([f"http://127.0.0.1:{free_port()}"], str(tmp_path), launch=launch, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


@contextmanager
def running(command: ServerCommand, url: str, folder: Path) -> Iterator[ServerProcess]:
    folder.mkdir(exist_ok=True)
    process, client = ServerProcess(Launch(PYTHON, ARGS, ENV), command, folder / "server.log"), Client()
    try:
        process.await_answer(f"{url}/health", client, 300)
        yield process
    finally:
        client.close()
        process.stop()


def prompts(count: int = 4) -> list[list[int]]:
    """Longer than a block of the prefix cache, so that a stale one would show.

    They end in letters: vLLM matches stop strings with what a prompt's last bytes become, where these are not text.
    """
    generator, end = torch.Generator().manual_seed(0), tiny_tokenizer().encode("text", add_special_tokens=False)
    return [[*ids, *end] for ids in torch.randint(8, 264, (count, 200 - len(end)), generator=generator).tolist()]


def moved(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable_parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)


def difference(policy: Policy, requests: list[Request], completions: list[Completion]) -> float:
    """The largest difference of a token's log-prob from that of the training pass."""
    rows = token_rows([request.prompt for request in requests], [c.token_ids for c in completions], 0)
    with torch.no_grad():
        ours_NT, _ = policy.logprobs(rows)
    pairs = zip(ours_NT.tolist(), completions, strict=True)
    return max(abs(a - b) for ours, c in pairs for a, b in zip(ours, c.logprobs, strict=False))


@pytest.mark.parametrize(
    ("kind", "rank", "merge_lora"),
    [("llama", 8, False), ("llama", 8, True), ("llama", None, False), ("lfm2", 8, False), ("lfm2", None, False)],
)
def test_tokens_and_log_probs_are_ours_after_every_push(
    path: str, launched: Callable[..., VLLMEngine], rank: int | None, merge_lora: bool
) -> None:
    policy = Policy(PolicyConfig(path=path, lora=None if rank is None else LoRAConfig(r=rank)))
    engine, ours = launched(merge_lora=merge_lora), InProcessEngine()
    ours.start(policy, LONGEST)
    engine.check(policy.config, LONGEST, SAMPLING)
    engine.start(policy, LONGEST)
    requests = [Request(prompt, 10 * row + member) for row, prompt in enumerate(prompts()) for member in range(4)]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=40)
    seen = set()
    for step in range(3):
        engine.push(policy, f"step-{step}")
        completions = engine.generate(requests, SAMPLING)
        assert difference(policy, requests, completions) < ROUNDING
        tokens = [completion.token_ids for completion in engine.generate(requests[::4], greedy)]
        assert tokens == [completion.token_ids for completion in ours.generate(requests[::4], greedy)]
        assert {completion.finish_reason.value for completion in completions} == {"stop", "length"}
        seen.add(str(tokens))
        moved(policy, step)
    assert len(seen) == 3
    # The same seed gives the same completion, and another one another.
    again = [engine.generate(requests[:2], SAMPLING) for _ in range(2)]
    assert [c.token_ids for c in again[0]] == [c.token_ids for c in again[1]]
    assert len({tuple(completion.token_ids) for completion in completions}) > 8
    # A stop string ends a completion, and stays in its text.
    longest = max(completions, key=lambda completion: len(completion.text))
    text, request = longest.text, requests[completions.index(longest)]
    string = next(
        letter for place, letter in enumerate(text) if place > 1 and letter.isascii() and letter not in text[:place]
    )
    (stopped,) = engine.generate([request], SamplingParams(max_new_tokens=40, stop=[string]))
    assert stopped.text == text[: text.index(string) + 1]
    assert stopped.finish_reason.value == "stop"
    assert stopped.logprobs == pytest.approx(longest.logprobs[: len(stopped.logprobs)], abs=ROUNDING)


def test_the_rotary_kernel_still_needs_its_way_round() -> None:
    """Where this fails, vLLM has corrected its kernel, and the server command of LFM2 needs no option for it."""
    script = Path(__file__).parents[2] / "benchmarks" / "vllm_rotary.py"
    output = subprocess.run([PYTHON, script], capture_output=True, text=True, check=True).stdout
    flat, split = (float(line.rsplit(maxsplit=1)[1]) for line in output.splitlines()[-2:])
    assert flat < 1e-6
    assert split > 1.0


def test_a_policy_learns(path: str, launched: Callable[..., VLLMEngine], tmp_path: Path) -> None:
    watch = Watch()
    data = rollouts(engine=launched(), prompts_per_step=4, group_size=8)
    fit(tmp_path, grpo(path, lora=LoRAConfig(r=8)), 12, data, callbacks=[watch])
    rewards = [logged["reward/mean"] for logged in watch.logged]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.1
    assert max(logged["policy/sampler_gap"] for logged in watch.logged) < 1e-4


def test_the_quickstart_task_from_the_command_line(path: str, free_port: Callable[[], int], tmp_path: Path) -> None:
    launch = {"python": PYTHON, "args": str(ARGS), "env": str(ENV)}
    engine = {"urls": f"[http://127.0.0.1:{free_port()}]", "shared_dir": str(tmp_path / "shared"), "max_gap": "0.001"}
    options = {
        "warm_start": "null", "run_dir": tmp_path / "run", "model.policy.path": path, "trainer.max_steps": 10,
        "trainer.val_check_interval": 10, "data.task.init_args.val_size": 8, "data.prompts_per_step": 4,
        "trainer.enable_progress_bar": "false", "data.engine": "VLLMEngine",
        **{f"data.engine.{key}": value for key, value in engine.items()},
        **{f"data.engine.launch.{key}": value for key, value in launch.items()},
    }  # fmt: skip
    main(
        [
            "fit",
            "--config",
            "configs/quickstart.yaml",
            *(str(part) for key, value in options.items() for part in (f"--{key}", value)),
        ]
    )
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    # (Random weights solve nothing here, so no step learns, and none logs a gap: the engine compares it itself.)
    assert [entry.step for entry in events.Scalars("total/rollout_tokens")] == list(range(10))
    assert list((tmp_path / "shared").iterdir()) == [tmp_path / "shared" / "vllm.log"]


def test_a_server_that_is_killed_hands_its_rows_to_the_other(
    path: str, free_port: Callable[[], int], tmp_path: Path
) -> None:
    policy = Policy(PolicyConfig(path=path, lora=LoRAConfig(r=8)))
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    engine = VLLMEngine(urls, str(tmp_path), restart_wait_s=1.0)
    first, second = (server_command(policy.config, url, LONGEST, merge_lora=False) for url in urls)
    with running(first, urls[0], tmp_path) as survivor, running(second, urls[1], tmp_path / "second") as killed:
        engine.check(policy.config, LONGEST, SAMPLING)
        engine.start(policy, LONGEST)
        engine.push(policy, "step-0")
        requests = [Request(prompt, 10 * row + member) for row, prompt in enumerate(prompts(8)) for member in range(8)]

        def kill(numbers: list[int], completions: list[Completion]) -> list[Request]:
            killed.stop(patience_s=0.1)
            return []

        completions = engine.generate(requests, SAMPLING, kill)
        assert len(completions) == 64
        assert difference(policy, requests, completions) < ROUNDING
        survivor.stop()
        with pytest.raises(RunError, match="no server is left"):
            engine.generate(requests[:1], SAMPLING)
        engine.stop()


def test_servers_that_do_not_suit(path: str, free_port: Callable[[], int], tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    right = server_command(PolicyConfig(path, lora=LoRAConfig(r=8)), url, LONGEST, merge_lora=False)

    def wrong(policy: PolicyConfig, longest: int, message: str, merge_lora: bool = False) -> None:
        engine = VLLMEngine([url], str(tmp_path / "shared"), merge_lora=merge_lora)
        try:
            with pytest.raises(ConfigError, match=message):
                engine.check(policy, longest, SAMPLING)
        finally:
            engine.stop()

    with running(right, url, tmp_path):
        wrong(
            PolicyConfig(path, lora=LoRAConfig(r=32)), LONGEST, "takes adapters up to rank 8, and the policy's has 32"
        )
        wrong(PolicyConfig(path, lora=LoRAConfig(r=8)), 400, "takes 320 tokens, and .* has up to 400")
        wrong(PolicyConfig(path), LONGEST, "VLLM_SERVER_DEV_MODE=1")
        # Another base model: the handshake cannot know it.
        other = save_tiny_model(tmp_path / "other", "llama", seed=1, **SIZES)
        policy = Policy(PolicyConfig(path=other, lora=LoRAConfig(r=8)))
        engine = VLLMEngine([url], str(tmp_path / "shared"))
        engine.check(policy.config, LONGEST, SAMPLING)
        engine.start(policy, LONGEST)
        with pytest.raises(ConfigError, match=r"does not sample from this policy: .* more than max_gap=0.15"):
            engine.push(policy, "step-0")
        engine.stop()
    raw = ServerCommand({}, [*right.args[: right.args.index("--logprobs-mode")]])
    with running(raw, url, tmp_path):
        wrong(PolicyConfig(path, lora=LoRAConfig(r=8)), LONGEST, "raw log-probs, which leave the temperature out")
