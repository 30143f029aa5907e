"""OpenAI's requests and answers, with vLLM's additions for token ids: from JSON to rows, and back."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grpo_lightning.commands.serve.decoding import Row
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.tokenizer import encode_prompt
from grpo_lightning.rollout.sampling import SamplingParams, row_seed
from grpo_lightning.types import Completion

JSON = dict[str, Any]

# Fields of OpenAI and vLLM that are not supported, with the values, besides null, at which they do nothing.
NEUTRAL: dict[str, list[Any]] = {
    "best_of": [1], "echo": [False], "suffix": [""], "presence_penalty": [0], "frequency_penalty": [0],
    "repetition_penalty": [1], "logit_bias": [{}], "top_logprobs": [0], "min_tokens": [0], "ignore_eos": [False],
    "skip_special_tokens": [True], "prompt_logprobs": [], "tools": [[]], "tool_choice": ["none", "auto"],
    "response_format": [{"type": "text"}], "add_generation_prompt": [True], "continue_final_message": [False],
}  # fmt: skip
READ = {
    "model", "prompt", "messages", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "include_stop_str_in_output",
    "logprobs", "return_token_ids", "stream", "stream_options",
}  # fmt: skip
IGNORED = {"user", "metadata", "store"}
"""Fields that say nothing about the completion."""
SEEDS = 2**63
TEMPERATURES = (1e-4, 1e4)
"""Of those that are not 0: beyond, logits divided by them are not finite numbers."""


class BadRequest(Exception):
    """A request that cannot be answered.

    Args:
        message: one sentence with the field and the fix.
        param: the field.
        status: the HTTP status.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status

    def body(self) -> JSON:
        """The error as OpenAI's clients expect it."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        what = kind.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": what, "param": self.param, "code": self.status}}


@dataclass
class Job:
    """What one request asks for.

    Args:
        rows: one per completion, those of a prompt next to each other.
        is_chat: whether the request is a chat completion.
        logprobs: return the log-prob of each token.
        token_ids: return the token ids of prompts and completions.
        stream: answer with server-sent events.
        usage_event: end the stream with an event about the usage.
    """

    rows: list[Row]
    is_chat: bool
    logprobs: bool
    token_ids: bool
    stream: bool
    usage_event: bool


def check_text(body: Mapping[str, Any]) -> None:
    """Refuse half of a surrogate pair, such as ``"\\ud800"``: JSON can hold it, and no tokenizer can encode it.

    Raises:
        BadRequest: a field has one.
    """
    for name, value in body.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            shown = name.encode("ascii", "backslashreplace").decode()
            raise BadRequest(f"{shown}: holds half of a surrogate pair: send whole characters", shown) from error
        except RecursionError as error:
            raise BadRequest(f"{name}: is nested too deeply", name) from error


def read_job(body: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, cap: int, longest: int, most: int) -> Job:
    """The rows that a request asks for.

    Args:
        body: the request's JSON.
        tokenizer: the policy's tokenizer.
        cap: tokens of a completion where the request does not say.
        longest: the most tokens of a prompt with its completion.
        most: the most rows of one request.

    Raises:
        BadRequest: a field is wrong, or not supported.
    """
    is_chat = "messages" in body
    for name, value in body.items():
        if name not in READ | IGNORED and not (name in NEUTRAL and value in (None, *NEUTRAL[name])):
            raise BadRequest(f"{name}: {value!r} is not supported: omit it", name)
    prompts = [_chat(body, tokenizer)] if is_chat else _prompts(body.get("prompt"), tokenizer)
    count = _integer(body, "n", 1, 1, most)
    if len(prompts) * count > most:
        raise BadRequest(
            f"n: {len(prompts)} prompts with n={count} are more than {most} rows: send fewer at a time", "n"
        )
    room = longest - max(map(len, prompts))
    if room < 1:
        name = "messages" if is_chat else "prompt"
        raise BadRequest(
            f"{name}: {max(map(len, prompts))} tokens leave no room for a completion in the {longest} of "
            "max_model_len: shorten it",
            name,
        )
    length = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    asked = _integer(body, length, min(cap, room), 1, longest)
    if asked > room:
        raise BadRequest(
            f"{length}: a prompt of {max(map(len, prompts))} tokens and {asked} more exceed the {longest} tokens of "
            "max_model_len: shorten the prompt or lower it",
            length,
        )
    sampling = _sampling(body, asked)
    if is_chat:
        sampling = sampling.with_stops_of(tokenizer)
    stop_ids = body.get("stop_token_ids") or []
    if not _are_ids(stop_ids, 2**31):
        raise BadRequest("stop_token_ids: must be a list of token ids", "stop_token_ids")
    seed = _integer(body, "seed", secrets.randbelow(SEEDS), 0, SEEDS - 1)
    seeds = [seed if member == 0 else row_seed(seed, member) for member in range(count)]
    rows = [Row(prompt, sampling, own, stop_ids) for prompt in prompts for own in seeds]
    logprobs = body.get("logprobs")
    if logprobs not in (None, False, 0) and not (logprobs is True and is_chat):
        raise BadRequest("logprobs: only the sampled token's log-prob is kept: use 0, or true for a chat", "logprobs")
    wanted = bool(logprobs) if is_chat else logprobs is not None and logprobs is not False
    return Job(
        rows, is_chat, wanted, bool(body.get("return_token_ids")), _stream(body),
        bool((body.get("stream_options") or {}).get("include_usage")),
    )  # fmt: skip


def _stream(body: Mapping[str, Any]) -> bool:
    if body.get("stream") not in (None, False, True):
        raise BadRequest(f"stream: must be true or false, not {body['stream']!r}", "stream")
    if not isinstance(body.get("stream_options") or {}, dict):
        raise BadRequest('stream_options: must be an object, such as {"include_usage": true}', "stream_options")
    return bool(body.get("stream"))


def _sampling(body: Mapping[str, Any], cap: int) -> SamplingParams:
    top_k = _integer(body, "top_k", 0, -1, 2**31)
    stop = body.get("stop")
    stop = [stop] if isinstance(stop, str) else stop
    if stop is not None and (not isinstance(stop, list) or not all(isinstance(string, str) for string in stop)):
        raise BadRequest("stop: must be a string or a list of strings", "stop")
    # OpenAI's protocol ends the text before a stop string.
    temperature = _number(body, "temperature", 1.0)
    low, high = TEMPERATURES
    if temperature > 0 and not low <= temperature <= high:
        raise BadRequest(
            f"temperature: must be 0 (greedy), or from {low:g} to {high:g}, not {temperature:g}", "temperature"
        )
    sampling = SamplingParams(
        temperature, max(top_k, 0), _number(body, "top_p", 1.0), _number(body, "min_p", 0.0),
        cap, stop, bool(body.get("include_stop_str_in_output")),
    )  # fmt: skip
    try:
        sampling.validate("")
    except ConfigError as error:
        sentence = str(error).lstrip(".")
        raise BadRequest(sentence, sentence.partition(":")[0]) from error
    return sampling


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < sys.float_info.max:
        raise BadRequest(f"{name}: must be a finite number, not {value!r}", name)
    return float(value)


def _integer(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequest(f"{name}: must be a whole number from {low} to {high}, not {value!r}", name)
    return value


def _are_ids(ids: Any, vocabulary: int) -> bool:
    return isinstance(ids, list) and all(type(number) is int and 0 <= number < vocabulary for number in ids)


def _prompts(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """A text, its token ids, or a list of either."""
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    found = [tokenizer.encode(text) if isinstance(text, str) else text for text in several]
    for ids in found:
        if not ids or not _are_ids(ids, len(tokenizer)):
            raise BadRequest(
                f"prompt: must be a text, a list of token ids from 0 to {len(tokenizer) - 1}, or a list of either, and "
                "not empty",
                "prompt",
            )
    return found


def _chat(body: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    messages = body["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise BadRequest("messages: must be a list of {role, content}, and not empty", "messages")
    turns = [{"role": str(message.get("role")), "content": _content(message.get("content"))} for message in messages]
    try:
        return encode_prompt(tokenizer, turns)
    except TemplateError as error:
        raise BadRequest(f"messages: the policy's chat template refuses them: {error}", "messages") from error


def _content(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise BadRequest("messages: content must be a text, or parts of type text", "messages")
    return "".join(map(str, texts))


def answer_of(job: Job, completions: Sequence[Completion], model: str, tokenizer: PreTrainedTokenizerBase) -> JSON:
    """The answer to a request."""
    choices = [
        _choice(job, index, row, completion, tokenizer)
        for index, (row, completion) in enumerate(zip(job.rows, completions, strict=True))
    ]
    prompts = {id(row.prompt): len(row.prompt) for row in job.rows}
    read, sampled = sum(prompts.values()), sum(len(completion.token_ids) for completion in completions)
    answer = {
        "id": ("chatcmpl-" if job.is_chat else "cmpl-") + secrets.token_hex(12),
        "object": "chat.completion" if job.is_chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {"prompt_tokens": read, "completion_tokens": sampled, "total_tokens": read + sampled},
    }
    return answer | ({"prompt_token_ids": job.rows[0].prompt} if job.is_chat and job.token_ids else {})


def events_of(job: Job, answer: JSON) -> str:
    """An answer as server-sent events: one with all choices, which have ended by then, and one about the usage."""
    name = "chat.completion.chunk" if job.is_chat else answer["object"]
    choices = [
        {"delta" if key == "message" else key: value for key, value in choice.items()} for choice in answer["choices"]
    ]
    usage = answer.pop("usage")
    chunks = [answer | {"object": name, "choices": choices}]
    if job.usage_event:
        chunks = [chunks[0] | {"usage": None}, answer | {"object": name, "choices": [], "usage": usage}]
    return "".join(f"data: {line}\n\n" for line in [*map(json.dumps, chunks), "[DONE]"])


def _choice(job: Job, index: int, row: Row, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> JSON:
    text = row.sampling.read(completion.text)
    choice: JSON = {"index": index, "finish_reason": str(completion.finish_reason), "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if job.is_chat else {"text": text}
    if job.token_ids:
        choice["token_ids"] = completion.token_ids
        if not job.is_chat:
            choice["prompt_token_ids"] = row.prompt
    if job.logprobs:
        # A greedy token is certain; its log-prob under the policy says more.
        logprobs = completion.sampling_logprobs if row.sampling.temperature else completion.logprobs
        tokens = [str(tokenizer.decode([token])) for token in completion.token_ids]
        choice["logprobs"] = _chat_logprobs(tokens, logprobs) if job.is_chat else _logprobs(tokens, logprobs)
    return choice


def _logprobs(tokens: list[str], logprobs: list[float]) -> JSON:
    offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": offsets}


def _chat_logprobs(tokens: list[str], logprobs: list[float]) -> JSON:
    pairs = zip(tokens, logprobs, strict=True)
    content = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in pairs
    ]
    return {"content": content}
