"""Decoding steps of fixed shapes, recorded and replayed: here by a tape that does on a CPU what a CUDA graph does."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout.engines import in_process
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.speed import decoding_cache, graphs
from grpo_lightning.speed.decoding_cache import RoomyLayer
from grpo_lightning.speed.direct import DirectStep
from grpo_lightning.speed.graphs import CUDAGraphs, GraphedDecoding, GraphedStep
from grpo_lightning.types import Completion
from tests.sampling import assert_similar, generate
from tests.tape import Tape
from tests.tiny import save_tiny_model
from tests.toy import half

PROMPTS = [[1, 30, 40, 50], [1, 60, 61, 62, 63, 64, 65, 66], [1, 90]]
SAMPLED, GREEDY = (SamplingParams(temperature=temperature, max_new_tokens=40) for temperature in (1.0, 0.0))
KINDS = ("llama", "qwen3", "lfm2")


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Tape]]:
    """A CPU records steps, as a GPU does."""
    monkeypatch.setitem(graphs.RECORDERS, "cpu", Tape)
    Tape.recorded.clear()
    Tape.replayed = Tape.casts = 0
    return Tape


def pair(path: str, **options: Any) -> tuple[Policy, Policy]:
    """Two equal policies, of which the second does not record."""
    policies = []
    for without in ([], ["graphed_decoding"]):
        torch.manual_seed(0)
        policy = Policy(PolicyConfig(path=path, without=without, **options))
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        policies.append(policy)
    assert policies[0].shortcuts.uses(GraphedDecoding)
    assert not policies[1].shortcuts.uses(GraphedDecoding)
    return policies[0], policies[1]


def assert_same(own: list[Completion], plain: list[Completion], tolerance: float = 1e-5) -> None:
    for one, other in zip(own, plain, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        for ours, theirs in ((one.logprobs, other.logprobs), (one.sampling_logprobs, other.sampling_logprobs)):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("kind", "sampling", "prompts"),
    half(list(KINDS), [SAMPLED, GREEDY], [PROMPTS, [PROMPTS[0], PROMPTS[0][::-1]]]),  # padded, and of one length
)
def test_recorded_rollouts_equal_those_that_are_not(
    kind: str,
    sampling: SamplingParams,
    prompts: list[list[int]],
    tape: type[Tape],
    tiny_model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows end at different times, and the cache grows past its room, which is rounded up, several times."""
    monkeypatch.setattr(decoding_cache, "BLOCK", 13)
    own, plain = pair(tiny_model(kind))
    tape.recorded.clear()
    found = [generate(policy, prompts, 5, sampling, list(range(5 * len(prompts)))) for policy in (own, plain)]
    assert_same(*found)
    # Steps of 4, 8, 12 or 16 rows, and the same number again where the cache has grown.
    rows = [rows for rows, _ in tape.recorded]
    assert set(rows) <= {4, 8, 12, 16}
    assert len(rows) <= 8
    if sampling is SAMPLED:
        lengths = sorted(len(one.token_ids) for one in found[0])
        assert lengths[0] < lengths[-1] - 8
        assert 1 < len(set(rows)) < len(rows) < tape.replayed / 2


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_later_rollouts_are_of_the_weights_as_they_are_then(
    lora: bool, tape: type[Tape], tiny_model: Callable[[str], str]
) -> None:
    policies = pair(tiny_model("lfm2"), lora=LoRAConfig(r=4, alpha=8) if lora else None)
    found = []
    for _ in range(2):
        found.append([generate(policy, PROMPTS, 4, SAMPLED, list(range(12))) for policy in policies])
        assert_same(*found[-1], tolerance=1e-4)
        for policy in policies:
            for number, parameter in enumerate(policy.trainable_parameters()):
                torch.manual_seed(number)
                parameter.data += 0.1 * torch.randn_like(parameter)
    assert found[0][0] != found[1][0]
    assert tape.replayed > 40


def test_rows_that_join_have_a_recording_of_their_own(
    tape: type[Tape], tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "MIN_JOIN_FRACTION", 0)
    monkeypatch.setattr(in_process, "MAX_CACHE_GROWTH", 100)

    def follow(rows: list[int], done: list[Completion]) -> list[Request]:
        return [Request([1, *one.token_ids, 33], 100 + row) for row, one in zip(rows, done, strict=True) if row < 12]

    found = [
        generate(policy, PROMPTS, 4, SamplingParams(max_new_tokens=12), list(range(12)), follow)
        for policy in pair(tiny_model("lfm2"))
    ]
    assert len(found[0]) == 24
    # Further requests are numbered as they arrive, which is the same here: rows end at the same steps.
    assert_same(*found)


def test_under_autocast_recordings_cast_no_weights(tape: type[Tape], tiny_model: Callable[[str], str]) -> None:
    found = []
    for policy in pair(tiny_model("lfm2")):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(generate(policy, PROMPTS, 4, SAMPLED, list(range(12))))
        assert policy.shortcuts.uses(GraphedDecoding) == (policy.config.without == [])
    assert_similar(*found)
    assert tape.recorded
    assert not tape.casts


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_fixed_shape_equals_the_plain_one_where_nothing_records(
    kind: str, tiny_model: Callable[[str], str]
) -> None:
    policy = Policy(PolicyConfig(path=tiny_model(kind))).eval()
    with torch.no_grad():
        own, plain = graphs._steps(policy.lm)
    assert [len(states) for states in own] == [3, 3, 3, 3, 2, 2]
    for found, expected in zip(own, plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_garbage_in_rows_and_columns_that_only_fill_the_shape_changes_nothing(
    tiny_model: Callable[[str], str],
) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("lfm2"))).eval()
    ids_RL = torch.tensor([[1, 30, 40], [1, 60, 61], [1, 90, 91]])
    found = []
    for garbage in (0.0, 50.0):
        with torch.no_grad():
            cache = policy.lm.get_decoder()(input_ids=ids_RL, use_cache=True).past_key_values
            cache = decoding_cache.decoding_cache([cache], [torch.arange(3)], 5, padded=True)
            for layer in cache.layers:
                if isinstance(layer, RoomyLayer):
                    for buffer in layer._buffers:
                        buffer[3:] = garbage
                        buffer[:, :, 3:] = garbage
                else:
                    layer.buffers()[0][3:] = garbage
            step = GraphedStep(DirectStep(policy.lm), cache, 3, torch.device("cpu"))
            tokens = torch.tensor([5, 6, 7])
            found.append([step(tokens, torch.full((3,), length - 1), length).clone() for length in (4, 5, 6)])
    for clean, other in zip(*found, strict=True):
        assert torch.equal(clean, other)


class Refuses(Tape):
    """Fails at the recording of a shape, when the step has run as it is."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        super().record(run)
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


class RunsOut(Tape):
    """Fails at the third shape, in the middle of a step: some states have been moved on, others have not."""

    shapes = 0

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        RunsOut.shapes += 1
        result = run()
        if RunsOut.shapes == 3:
            raise torch.OutOfMemoryError("out of memory")
        return result


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [(Refuses, "operation not permitted when stream is capturing"), (RunsOut, "out of memory")],
)
def test_a_step_that_fails_is_repeated_the_plain_way_and_the_log_says_so_once(
    recorder: type[Tape],
    reason: str,
    tape: type[Tape],
    tiny_model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, plain = pair(tiny_model("lfm2"))
    monkeypatch.setitem(graphs.RECORDERS, "cpu", recorder)
    RunsOut.shapes = 0
    for _ in range(2):
        assert_same(*(generate(policy, PROMPTS, 5, SAMPLED, list(range(15))) for policy in (own, plain)))
    line = f"shortcut graphed_decoding: not used: a step has failed ({reason})"
    own_warnings = [record for record in caplog.records if record.name.startswith("grpo_lightning")]
    assert [record.getMessage() for record in own_warnings if record.levelno == logging.WARNING] == [line]
    assert line in own.shortcuts.lines()


class Forgets(Tape):
    """Replays nothing."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        result = run()
        return lambda: result


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Refuses, "its step fails in Lfm2ForCausalLM (operation not permitted when stream is capturing)"),
        (Forgets, "its step gives Lfm2ForCausalLM other states than one that is not recorded"),
    ],
)
def test_a_trial_at_load_that_fails_is_a_reason(
    recorder: type[Tape], reason: str, tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(graphs.RECORDERS, "cpu", recorder)
    lines = Policy(PolicyConfig(path=tiny_model("lfm2"))).shortcuts.lines()
    assert f"shortcut graphed_decoding: not used: {reason}" in lines


def test_the_reasons_that_need_no_trial(tape: type[Tape], tiny_model: Callable[[str], str], tmp_path: Any) -> None:
    def line(path: str, **options: Any) -> str:
        lines = Policy(PolicyConfig(path=path, **options)).shortcuts.lines()
        return next(line for line in lines if "graphed_decoding" in line).partition(": ")[2]

    plain = tiny_model("llama")
    assert line(plain) == "used"
    assert line(plain, without=["direct_decoding"]) == "not used: it needs direct_decoding, which is not used"
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = save_tiny_model(tmp_path, "llama", rope_parameters=rope)
    assert "the positions of LlamaForCausalLM depend on the longest row" in line(dynamic)
    del graphs.RECORDERS["cpu"]
    assert line(plain) == "not used: it is for CUDA"


def test_a_rollout_leaves_no_recording_and_no_cache(
    tape: type[Tape], tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even until garbage is collected: on a GPU they would take the memory of the update."""
    monkeypatch.setattr(decoding_cache, "BLOCK", 13)
    own, _ = pair(tiny_model("llama"))
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, room = 0, RoomyLayer._room

    def watched(*shape: Any) -> Tensor:
        nonlocal most
        buffer = room(*shape)
        alive.add(buffer)
        most = max(most, len(alive))
        return buffer

    monkeypatch.setattr(RoomyLayer, "_room", watched)
    gc.collect()
    gc.disable()
    try:
        for cap in (40, 2):  # the second one ends before anything is recorded
            generate(own, PROMPTS, 4, SamplingParams(max_new_tokens=cap), list(range(12)))
            assert tape.replayed
            assert not alive
        # Keys and values of two layers, and one that replaces another while the cache grows.
        assert most == 5
    finally:
        gc.enable()


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_graphs_give_the_rollouts_of_steps_that_are_launched(
    kind: str, lora: bool, precision: torch.dtype, tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above with the tape: rows end, the cache grows, and the weights change between two rollouts."""
    monkeypatch.setattr(decoding_cache, "BLOCK", 13)
    record, recorded, found = CUDAGraphs.record, [0, 0], []

    def counted(self: CUDAGraphs, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded[len(found)] += 1
        return record(self, run)

    monkeypatch.setattr(CUDAGraphs, "record", counted)
    for without in ([], ["graphed_decoding"]):
        torch.manual_seed(0)
        adapter = LoRAConfig(r=4, alpha=8) if lora else None
        policy = Policy(PolicyConfig(path=tiny_model(kind), without=without, lora=adapter)).to("cuda")
        done = []
        for seed in range(2):
            for parameter in policy.trainable_parameters():
                torch.manual_seed(seed)
                parameter.data += 0.1 * torch.randn(parameter.shape).to("cuda")
            with torch.autocast("cuda", precision, enabled=precision is not torch.float32):
                done += generate(policy, PROMPTS, 5, SAMPLED, list(range(15)))
        line = next(line for line in policy.shortcuts.lines() if "graphed_decoding" in line)
        assert line.endswith("switched off by model.policy.without" if without else ": used")
        found.append(done)
    # A few shapes per rollout, and that of the trial.
    assert recorded[0] >= 5
    assert recorded[1] == 0
    if precision is torch.float32:
        assert_same(*found, tolerance=1e-4)
    else:
        assert_similar(*found)


@pytest.mark.cuda
def test_a_capture_that_fails_leaves_the_stream_as_it_was() -> None:
    device, number = torch.device("cuda"), torch.ones(3, device="cuda")
    before = torch.cuda.current_stream(device)
    with pytest.raises(RuntimeError):
        CUDAGraphs(device).record(lambda: number * number.sum().item())
    assert torch.cuda.current_stream(device) == before
    assert (number + torch.ones(3, device="cuda")).sum().item() == 6


# -- the tape itself ---------------------------------------------------------------------------------------------------


def test_the_tape_repeats_numbers_and_refuses_what_a_capture_would() -> None:
    """Otherwise the tests above could not fail."""
    state, number = torch.zeros(2), [1.0]
    tape = Tape(torch.device("cpu"))
    replay = tape.record(lambda: state.add_(number[0]) * 2)
    assert state.tolist() == [0, 0]
    number[0] = 5.0
    assert replay().tolist() == [2, 2]
    assert replay().tolist() == [4, 4]
    assert state.tolist() == [2, 2]
    for forbidden in (
        lambda: state * state.sum().item(),
        lambda: state[state > 0],
        lambda: state + torch.tensor([1.0, 2.0]),
        lambda: state + torch.rand(2),
    ):
        with pytest.raises(AssertionError, match="cannot be captured"):
            tape.record(forbidden)
