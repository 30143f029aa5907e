"""Loading a tokenizer, and turning chats into token ids. Needs no weights, so it comes before them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning import hub
from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.loading import base_path
from grpo_lightning.models.templates import TEMPLATES, complete_template, named_template, render
from grpo_lightning.models.weightless import is_weightless, tiny_tokenizer
from grpo_lightning.types import Completion

PROMPT_END = 64
"""Characters that :func:`prompt_end` gives: more than any opening tag of a thought and the line breaks after it."""


def tokenizer_of(config: PolicyConfig, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Load a policy's tokenizer, or copy the one that a program gave with its model.

    Args:
        config: the policy's.
        chat_template: replaces the tokenizer's: a Jinja text or a name such as ``plain``.

    Raises:
        ConfigError: see :func:`load_tokenizer`.
    """
    if config.given is None or config.given[1] is None or is_weightless():
        return load_tokenizer(config.path, config.revision, chat_template, config.chat_template_kwargs)
    return _with_template(copy.deepcopy(config.given[1]), config.path, chat_template, config.chat_template_kwargs)


def load_tokenizer(
    path: str,
    revision: str | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub name or local folder.

    Args:
        path: hub name or local folder of a model or an adapter.
        revision: branch, tag or commit of a hub model.
        chat_template: replaces the tokenizer's: a Jinja text or a name such as ``plain``.
        chat_template_kwargs: see :func:`~grpo_lightning.models.templates.complete_template`.

    Raises:
        ConfigError: there is no tokenizer at that path, or no chat template to render prompts with.
    """
    if is_weightless():
        return tiny_tokenizer()
    if not (Path(path) / "tokenizer_config.json").is_file():
        path = base_path(path)
    tokenizer = plain_tokenizer(path, revision, "model.policy.path")
    return _with_template(tokenizer, path, chat_template, chat_template_kwargs or {})


def plain_tokenizer(path: str, revision: str | None, key: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it is.

    Args:
        path: hub name or local folder.
        revision: branch, tag or commit on the hub.
        key: names the path in an error.

    Raises:
        ConfigError: there is no tokenizer at that path.
    """
    try:
        with hub.from_hub(path):
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, revision=revision))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        if not Path(path).is_dir():
            raise ConfigError(f"{key}: {hub.why_not(path, reason)}") from error
        raise ConfigError(f"{key}: no tokenizer found in the folder {path} ({reason})") from error


def _with_template(
    tokenizer: PreTrainedTokenizerBase, path: str, chat_template: str | None, chat_template_kwargs: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    if chat_template is not None:
        tokenizer.chat_template = named_template(chat_template)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"model.policy.path: the tokenizer of {path} has no chat template: give "
            f"data.task.init_args.chat_template; for a base model, {' or '.join(TEMPLATES)} will do"
        )
    complete_template(tokenizer, chat_template_kwargs)
    return tokenizer


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """Token ids of a chat, up to the place where the assistant's answer begins.

    The template writes its own BOS, so no special tokens are added to what it renders.

    Raises:
        ConfigError: the chat template refuses the chat.
    """
    return cast(list[int], tokenizer.encode(render(tokenizer, messages, tools=tools), add_special_tokens=False))


def between_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """What the chat template writes between two answers of the assistant: the end of a turn, the messages, the start.

    Args:
        tokenizer: has the chat template.
        messages: what is said between the two answers.
        tools: JSON schemas of the tools that the policy may call.
    """
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\x01"}, *messages]
    return render(tokenizer, turns, tools=tools).split("\x01", 1)[1]


def as_plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a space inside whatever would be read as a special token.

    What is said to the policy may quote it, as a JSON key: what the policy spelled out must not end a turn.
    """
    for special in sorted(control_tokens(tokenizer), key=len, reverse=True):
        text = text.replace(special, f"{special[0]} {special[1:]}")
    return text


def prompt_end(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]) -> str:
    """The last characters of a prompt as the policy reads it, special tokens included: whether it opens a thought."""
    # Nearly every token stands for a character or more.
    return str(tokenizer.decode(prompt_ids[-PROMPT_END:], skip_special_tokens=False))[-PROMPT_END:]


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, terminator: int) -> list[int]:
    """Token ids of an assistant's answer as the policy would sample them: the text, then the terminator."""
    return [*tokenizer.encode(text, add_special_tokens=False), terminator]


def without_end(tokenizer: PreTrainedTokenizerBase, completion: Completion, terminators: Sequence[int]) -> list[int]:
    """Token ids of a completion without what ended it, since the chat template writes its own end of a turn.

    That is a terminator, or a stop string that is not in the text. A token that holds the beginning of one, too, is
    replaced by those of its other characters.
    """
    ids, text = completion.token_ids, completion.text
    if ids[-1] in terminators:
        return ids[:-1]

    def decoded(count: int) -> str:
        return str(tokenizer.decode(ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if decoded(len(ids)) == text:
        return ids
    kept = next(count for count in range(len(ids), -1, -1) if text.startswith(decoded(count)))
    return [*ids[:kept], *tokenizer.encode(text[len(decoded(kept)) :], add_special_tokens=False)]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special tokens by their text: those with a role, such as EOS, and all others."""
    marked = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def terminators(tokenizer: PreTrainedTokenizerBase, lm: PreTrainedModel) -> list[int]:
    """Every token that ends a completion: chat template's (the first), tokenizer's and generation config's, in union.

    Models disagree with themselves here (LFM2's config says 2, its chat template ends turns with 7), and a
    terminator that is missed lets every completion run to the cap.

    Raises:
        ConfigError: nothing names a token that the model can write.
    """
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\x01"}]
    rendered = cast(str, tokenizer.apply_chat_template(turns, tokenize=False))
    tail = tokenizer.encode(rendered.rsplit("\x01", 1)[-1], add_special_tokens=False)
    control = set(control_tokens(tokenizer).values())
    found = [token for token in tail if token in control][:1]
    for source in (tokenizer.eos_token_id, getattr(lm.generation_config, "eos_token_id", None)):
        found += source if isinstance(source, list) else [] if source is None else [source]
    rows = lm.get_output_embeddings().weight.shape[0]
    found = [token for token in dict.fromkeys(found) if token < rows]
    if not found:
        raise ConfigError("model.policy.path: neither the tokenizer nor the model names a token that ends a completion")
    return found
