"""Conversations of several turns as token ids: sampled ids stay as they are, the template renders the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema

from grpo_lightning.environments.base import Message
from grpo_lightning.environments.calls import FORMATS, Call, CallParser, ToolFormat, format_of
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.templates import render
from grpo_lightning.models.tokenizer import as_plain_text, between_turns

_USER: Message = {"role": "user", "content": "x"}


class Dialogue:
    """Continues conversations as a model's chat template writes them.

    A template keeps beginnings if the text of a chat starts with the text of its first turns. Then the next turn's
    token ids are those of the turn before, the reply as it was sampled, and what the template writes after it. Some
    templates rewrite earlier turns when a new one comes: they drop thoughts. Under these the whole chat is rendered for
    every turn. Either way, a turn is learned under the very token ids that it was sampled under.

    Args:
        tokenizer: has the chat template.
        tools: typed functions, which the template shows to the policy.
        tool_format: how the policy writes calls.

    Raises:
        ConfigError: a tool has no types or docstring, or the template does not show tools or their results, or
            describes a format that is not known.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[Callable[..., Any]] = (),
        tool_format: ToolFormat = "auto",
    ) -> None:
        self.tokenizer = tokenizer
        self.schemas = [_schema(tool) for tool in tools]
        self.parser = self._parser(tool_format) if tools else None
        self.rewrites = self._rewrites()
        """What of earlier turns the template rewrites, in a few words; empty if it keeps beginnings."""

    def first(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat, up to where the reply begins.

        Raises:
            ConfigError: the template refuses the chat.
        """
        return self._encoded(self._render(messages))

    def next(self, conversation: list[int], said: list[int], chat: Sequence[Message], count: int) -> list[int]:
        """Token ids of the conversation up to where the next reply begins.

        Args:
            conversation: token ids that the last reply was sampled under.
            said: the reply's token ids, without a terminator.
            chat: all messages, with the reply and what follows it.
            count: how many messages follow the reply.
        """
        if self.rewrites:
            return self.first(chat)
        return [*conversation, *said, *self._encoded(self._between(chat[len(chat) - count :]))]

    def reply(self, said: list[int]) -> str:
        """The text of a reply, special tokens included, since tool calls may be written with these."""
        return str(self.tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def calls(self, reply: str, prompt_end: str = "") -> list[Call]:
        """The tool calls in a reply, outside of its thoughts. The end of the prompt tells whether it opened one."""
        return [] if self.parser is None else self.parser.calls(reply, prompt_end)

    def safe(self, messages: Sequence[Message]) -> list[Message]:
        """Messages in which nothing can be read as a special token.

        What a tool returns may quote the policy: it must not end its own turn, or begin another.
        """
        return [message | {"content": as_plain_text(self.tokenizer, message["content"])} for message in messages]

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return render(self.tokenizer, messages, tools=self.schemas or None)

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _between(self, messages: Sequence[Message]) -> str:
        return between_turns(self.tokenizer, messages, tools=self.schemas or None)

    def _parser(self, tool_format: ToolFormat) -> CallParser:
        key = "data.environment.init_args.tool_format"
        template = self.tokenizer.get_chat_template(tools=self.schemas)
        name = format_of(template) if tool_format == "auto" else tool_format
        shown, empty = self._render([_USER]), render(self.tokenizer, [_USER])
        missing = [schema["function"]["name"] for schema in self.schemas if schema["function"]["name"] not in shown]
        if missing or shown == empty:
            raise ConfigError(
                f"data.environment: the chat template does not show the tools ({missing[0] if missing else 'tools'}) "
                "to the policy: take a model whose template reads `tools`, or give one as "
                "data.task.init_args.chat_template"
            )
        if name is None:
            raise ConfigError(
                f"{key}: the chat template describes none of the known formats of tool calls: set one of "
                f"{', '.join(FORMATS)}"
            )
        if "\x03" not in self._between([{"role": "tool", "content": "\x03"}]):
            raise ConfigError(
                "data.environment: the chat template does not write the results of tools: give another one as "
                "data.task.init_args.chat_template"
            )
        return FORMATS[name]

    def _rewrites(self) -> str:
        """Compare the text of whole chats with that of turns laid end to end."""
        template = self.tokenizer.get_chat_template()
        replies = {"replies": "A b."}
        if "think" in template:
            replies["thoughts"] = "<think>\nA\n</think>\n\nB"
        if self.parser is not None:
            replies["tool calls"] = self.parser.example
        roles = ["user"] if self.parser is None else ["user", "tool"]
        for name, reply in replies.items():
            for role in roles:
                chat: list[Message] = [_USER]
                expected = self._render(chat)
                for _ in range(2):
                    messages = [{"role": role, "content": "C"}]
                    expected += reply + self._between(messages)
                    chat += [{"role": "assistant", "content": reply}, *messages]
                    if self._render(chat) != expected:
                        return name
        return ""


def _schema(tool: Callable[..., Any]) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = get_json_schema(tool)
    except Exception as error:  # transformers has several kinds for types and docstrings
        raise ConfigError(
            f"data.environment: the tool {getattr(tool, '__name__', tool)} needs typed arguments, and a docstring with "
            f"a line for each ({error})"
        ) from error
    return schema
