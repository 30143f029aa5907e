"""``grpo serve``: the protocol, the batching, the limits."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.__main__ import main
from grpo_lightning.cli.grpo_cli import parse
from grpo_lightning.commands.serve.command import bound_socket, check_host
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.models.tokenizer import encode_prompt, load_tokenizer
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.sampling import row_seed
from tests.sampling import generate

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from grpo_lightning.commands.serve.app import Limits, PolicyServer
from grpo_lightning.commands.serve.decoding import DecodingLoop, Row
from grpo_lightning.commands.serve.policy import ServeCLI, policy_of
from grpo_lightning.commands.serve.protocol import read_job
from grpo_lightning.rollout.engines.decoder import Decoder
from tests.standin import Running

PROMPT = [20, 30, 40]


@pytest.fixture(scope="module")
def loop(tiny_model: Callable[[str], str]) -> Iterator[DecodingLoop]:
    loop = DecodingLoop(Policy(PolicyConfig(path=tiny_model("llama"))), max_rows=8, max_length=256)
    loop.start()
    yield loop
    loop.stop()


@pytest.fixture(scope="module")
def url(loop: DecodingLoop) -> Iterator[str]:
    limits = Limits(max_new_tokens=12, rows_per_request=16, body_bytes=4096)
    server = Running(PolicyServer({"policy": loop}, limits))
    yield server.url
    server.kill()


def post(url: str, body: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_completion_is_that_of_the_in_process_engine(url: str, loop: DecodingLoop) -> None:
    sampling = {"max_tokens": 12, "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
    body = {"prompt": PROMPT, "n": 3, "seed": 5, "logprobs": 0, "return_token_ids": True, **sampling}
    status, answer = post(url, body)
    assert status == 200
    seeds = [5, row_seed(5, 1), row_seed(5, 2)]
    params = SamplingParams(0.7, 40, 0.95, 0.01, 12)
    expected = generate(loop.policy, [PROMPT], 3, params, seeds)
    for number, (choice, completion) in enumerate(zip(answer["choices"], expected, strict=True)):
        assert choice["index"] == number
        assert choice["token_ids"] == completion.token_ids
        assert choice["prompt_token_ids"] == PROMPT
        assert choice["text"] == completion.text
        assert choice["finish_reason"] == str(completion.finish_reason)
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(completion.sampling_logprobs, abs=1e-4)
    sampled = sum(len(completion.token_ids) for completion in expected)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": sampled, "total_tokens": 3 + sampled}


def test_a_certain_token_has_log_prob_zero(url: str) -> None:
    _, answer = post(url, {"prompt": PROMPT, "max_tokens": 1, "top_k": 1, "logprobs": 0})
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [0.0]


def test_rows_with_different_sampling_and_lengths_share_a_batch(url: str, loop: DecodingLoop) -> None:
    """Each is what it is alone, whatever decodes beside it, and also if it joins a batch under way."""
    bodies = [
        {"prompt": [20 + row, *PROMPT[row % 3 :]], "seed": row, "max_tokens": 4 + 3 * row, "return_token_ids": True}
        | ({"temperature": 0} if row % 4 == 0 else {"top_k": 3} if row % 4 == 1 else {"temperature": 0.8})
        for row in range(24)
    ]  # fmt: skip
    alone = [post(url, body)[1]["choices"][0]["token_ids"] for body in bodies[::5]]
    with ThreadPoolExecutor(24) as clients:
        together = list(clients.map(lambda body: post(url, body)[1]["choices"][0]["token_ids"], bodies))
    assert together[::5] == alone
    assert len({tuple(ids) for ids in together}) > 12


def test_chat(url: str, loop: DecodingLoop) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    body = {"messages": messages, "seed": 3, "logprobs": True, "return_token_ids": True, "max_completion_tokens": 8}
    status, answer = post(url, body, "/v1/chat/completions")
    assert status == 200
    ids = encode_prompt(
        loop.policy.tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    )
    (expected,) = generate(loop.policy, [ids], 1, SamplingParams(max_new_tokens=8), [3])
    (choice,) = answer["choices"]
    assert answer["prompt_token_ids"] == ids
    assert choice["token_ids"] == expected.token_ids
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    found = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert found == pytest.approx(expected.sampling_logprobs, abs=1e-4)


def test_stops(url: str, loop: DecodingLoop) -> None:
    (free,) = generate(loop.policy, [PROMPT], 1, SamplingParams(max_new_tokens=12), [1])
    body = {"prompt": PROMPT, "seed": 1, "return_token_ids": True}
    _, answer = post(url, body | {"stop_token_ids": [free.token_ids[3]]})
    length = free.token_ids.index(free.token_ids[3]) + 1
    assert answer["choices"][0]["token_ids"] == free.token_ids[:length]
    assert answer["choices"][0]["finish_reason"] == "stop"
    string = free.text[2:4]
    for keep in (False, True):
        _, answer = post(url, body | {"stop": string, "include_stop_str_in_output": keep})
        head = free.text.partition(string)[0]
        assert answer["choices"][0]["text"].startswith(head + string if keep else head)
        assert (string in answer["choices"][0]["text"]) == keep
        assert len(answer["choices"][0]["token_ids"]) < len(free.token_ids)


def test_a_chat_ends_where_the_chat_template_says(tiny_model: Callable[[str], str]) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"), chat_template="plain")
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    for body, stop in (
        (chat, ["\n\nQuestion:"]), (chat | {"stop": "a"}, ["a"]), (chat | {"stop": []}, []), ({"prompt": "Hi"}, None)
    ):  # fmt: skip
        (row,) = read_job(body, tokenizer, 8, 256, 1).rows
        assert row.sampling.stop == stop
        assert row.sampling.stop_in_text is False


def test_what_a_server_says_of_itself(url: str) -> None:
    for path, found in [("/health", ""), ("/version", "grpo-lightning"), ("/v1/models", '"max_model_len":256')]:
        with urllib.request.urlopen(url + path) as answer:
            assert answer.status == 200
            assert found in answer.read().decode()


def events(url: str, body: dict[str, Any], path: str) -> list[Any]:
    """The events of a streamed answer, which must end with ``[DONE]``."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *found, done, rest = answer.read().decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


def test_a_stream_says_what_a_plain_answer_says(url: str) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "seed": 3, "max_tokens": 8, "n": 2}
    plain = post(url, chat, "/v1/chat/completions")[1]
    streamed, usage = events(
        url, chat | {"stream": True, "stream_options": {"include_usage": True}}, "/v1/chat/completions"
    )
    assert streamed["object"] == usage["object"] == "chat.completion.chunk"
    assert [choice["delta"] for choice in streamed["choices"]] == [choice["message"] for choice in plain["choices"]]
    assert all(choice["finish_reason"] and "message" not in choice for choice in streamed["choices"])
    assert (streamed["usage"], usage["choices"], usage["usage"]) == (None, [], plain["usage"])

    body = {"prompt": PROMPT, "seed": 1, "max_tokens": 4}
    (only,) = events(url, body | {"stream": True}, "/v1/completions")
    assert only["choices"] == post(url, body)[1]["choices"]
    assert "usage" not in only


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [3, 10**6]}, 400, "prompt"),
        ({"prompt": [True]}, 400, "prompt"),
        ({}, 400, "prompt"),
        ({"prompt": "a", "messages": []}, 400, "prompt"),
        ({"prompt": "a", "model": "gpt"}, 404, "model"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p"),
        ({"prompt": "a", "top_k": "many"}, 400, "top_k"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 256}, 400, "max_tokens"),
        ({"prompt": "a" * 300}, 400, "prompt"),
        ({"prompt": "a", "temperature": float("inf")}, 400, "temperature"),
        ({"prompt": "a", "temperature": 10**400}, 400, "temperature"),
        ({"prompt": "a", "temperature": 1e-45}, 400, "temperature"),
        ({"prompt": "a", "temperature": 1e39}, 400, "temperature"),
        ({"prompt": "a", "logprobs": 1}, 400, "logprobs"),
        ({"prompt": "a", "stop": ["\ud800"]}, 400, "stop"),
        ({"prompt": ["a", "\ud800"]}, 400, "prompt"),
        ({"prompt": "a", "user\ud800": 1}, 400, "user\\ud800"),
        ({"prompt": "a", "tools": [{}]}, 400, "tools"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"prompt": "a", "n": 17}, 400, "n"),
        ({"prompt": ["a", "b"], "n": 9}, 400, "n"),
        ({"prompt": "a", "seed": -1}, 400, "seed"),
        ({"prompt": "a", "logprobs": 5}, 400, "logprobs"),
        ({"prompt": "a", "stop": [1]}, 400, "stop"),
        ({"prompt": "a", "stop_token_ids": ["x"]}, 400, "stop_token_ids"),
        ({"prompt": "a", "stream": "yes"}, 400, "stream"),
        ({"prompt": "a", "stream": True, "stream_options": [1]}, 400, "stream_options"),
        ({"prompt": "a", "frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"prompt": "a", "no_such_field": 1}, 400, "no_such_field"),
        (b"{", 400, None),
        (b"[1]", 400, None),
        ({"prompt": "a" * 5000}, 413, None),
    ],
)  # fmt: skip
def test_bad_requests_get_one_sentence(url: str, body: Any, status: int, param: str | None) -> None:
    found, answer = post(url, body)
    assert (found, answer["error"]["param"], answer["error"]["code"]) == (status, param, status)
    assert answer["error"]["message"].count("\n") == 0


def test_bad_chats_and_types(url: str) -> None:
    for messages in (
        [],
        "hi",
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": "a" * 300}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [3],
    ):
        status, answer = post(url, {"messages": messages}, "/v1/chat/completions")
        assert (status, answer["error"]["param"]) == (400, "messages")
    # A web page may post a form to a local address without being asked.
    assert post(url, {"prompt": "a"}, **{"Content-Type": "text/plain"})[0] == 415
    assert post(url, {"prompt": "a", "presence_penalty": 0, "user": "me", "stream": False, "stop": None})[0] == 200
    neutral = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "logit_bias": {}}
    assert post(url, {"prompt": "a", **neutral})[0] == 200


def test_a_key_and_a_full_queue(loop: DecodingLoop) -> None:
    server = Running(PolicyServer({"policy": loop}, Limits(waiting_rows=2), api_key="secret"))
    try:
        assert post(server.url, {"prompt": "a"})[0] == 401
        assert post(server.url, {"prompt": "a"}, Authorization="Bearer wrong")[0] == 401
        right = {"Authorization": "Bearer secret"}
        assert post(server.url, {"prompt": "a", "max_tokens": 1}, **right)[0] == 200
        assert post(server.url, {"prompt": "a", "n": 3}, **right)[0] == 429
    finally:
        server.kill()


def test_a_client_that_goes_away_frees_its_rows(tiny_model: Callable[[str], str]) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("llama")))
    policy.terminators = []
    loop = DecodingLoop(policy, max_rows=2, max_length=100_000)
    loop.start()
    server = Running(PolicyServer({"policy": loop}, Limits()))
    try:
        body = json.dumps({"prompt": PROMPT, "n": 4, "max_tokens": 50_000})
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        until = time.monotonic() + 30
        while loop.waiting != 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert loop.waiting == 2
        client.close()
        # Two rows decode and two wait, each for minutes; a further one would not get its turn.
        assert post(server.url, {"prompt": PROMPT, "max_tokens": 2})[0] == 200
        assert loop.waiting == 0
    finally:
        server.kill()
        loop.stop()


def test_a_batch_that_breaks_is_a_500_and_the_next_one_works(tiny_model: Callable[[str], str]) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("llama"), without=["packed_weights", "direct_decoding"]))
    weight = next(policy.lm.parameters())
    loop = DecodingLoop(policy, max_rows=2, max_length=64)
    loop.start()
    server = Running(PolicyServer({"policy": loop}, Limits(max_new_tokens=4)))
    try:
        kept = weight.data.clone()
        weight.data.fill_(float("nan"))
        status, answer = post(server.url, {"prompt": "a"})
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "log-probs are NaN" in answer["error"]["message"]
        weight.data.copy_(kept)
        assert post(server.url, {"prompt": "a"})[0] == 200
    finally:
        server.kill()
        loop.stop()


def test_an_error_belongs_to_the_row_that_caused_it(loop: DecodingLoop) -> None:
    # A stop string that cannot be encoded; the protocol refuses it.
    rows = [Row(PROMPT, SamplingParams(max_new_tokens=4, stop=stop), 1) for stop in (None, ["\ud800"])]
    loop.submit(rows)
    assert len(rows[0].completion.result(60).token_ids) <= 4
    with pytest.raises(UnicodeEncodeError):
        rows[1].completion.result(60)


class WatchedLoop(DecodingLoop):
    """Remembers how wide its caches were, and how often rows joined a batch."""

    widest = joins = 0

    def _joining(self, decoder: Decoder, active: int) -> list[Row]:
        self.widest = max(self.widest, decoder.length)
        joining = super()._joining(decoder, active)
        self.joins += bool(joining)
        return joining


def test_under_steady_load_rows_join_and_the_cache_stays_bounded(loop: DecodingLoop) -> None:
    steady = WatchedLoop(loop.policy, max_rows=3, max_length=40)
    rows = [Row(PROMPT, SamplingParams(max_new_tokens=8 + 7 * (number % 4)), number) for number in range(40)]
    steady.submit(rows)
    steady.start()
    try:
        assert [len(row.completion.result(60).token_ids) <= row.sampling.cap for row in rows] == [True] * 40
    finally:
        steady.stop()
    # Without a bound one batch would take all rows: some 200 columns.
    assert steady.joins > 3
    assert 40 < steady.widest <= 40 + 29


def test_hosts_that_others_can_reach_need_a_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_host(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.5", "example.org"):
        check_host(host, "secret")
        with pytest.raises(ConfigError, match="GRPO_API_KEY"):
            check_host(host, None)


def test_the_command(
    tiny_model: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run's checkpoint is served: the weights are those that it was trained to."""
    options = [
        "--config", "configs/quickstart.yaml", "--warm_start", "null", "--model.policy.path", tiny_model("llama"),
        "--trainer.default_root_dir", str(tmp_path),
    ]  # fmt: skip
    fresh = policy_of(parse(options, ServeCLI))
    state = {f"policy.{name}": p.detach() + 1 for name, p in fresh.named_parameters()}
    torch.save({"state_dict": state, "skipped_steps": 0}, tmp_path / "a.ckpt")
    served = policy_of(cli := parse([*options, "--ckpt_path", str(tmp_path / "a.ckpt")], ServeCLI))
    pairs = zip(served.parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(one, other + 1) for one, other in pairs)
    torch.save({"state_dict": state, "skipped_steps": 0, "format": 2}, tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=r"has format 2, .*: install a newer grpo-lightning"):
        policy_of(cli)
    state.popitem()
    torch.save({"state_dict": state, "skipped_steps": 0}, tmp_path / "b.ckpt")
    cli.config.ckpt_path = str(tmp_path / "b.ckpt")
    with pytest.raises(ConfigError, match="is of another policy"):
        policy_of(cli)
    with pytest.raises(ConfigError, match="no run under"):
        parse([*options, "--ckpt_path", "last"], ServeCLI)
    for arguments, message in [
        (["--port", "x"], "--port: must be a whole number"),
        (["--host", "0.0.0.0"], "set the environment variable GRPO_API_KEY"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main(["serve", *options, *arguments])
        assert message in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit, match="2"):
        main(["serve", *options, "--port", str(taken.getsockname()[1])])
    assert re.search(r"--port: cannot listen on 127.0.0.1:\d+: Address already in use", capsys.readouterr().err)
    with pytest.raises(ConfigError, match=r"--host: cannot listen on 192\.0\.2\.1:8000"):
        bound_socket("192.0.2.1", 8000)
