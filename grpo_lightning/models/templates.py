"""Chat templates: one that comes with the framework, and what is added to those that come with a model.

Everything is added to the text of the template itself, so all that renders chats with the tokenizer, and later with
the exported one, renders the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError

PLAIN = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' %}
{{- 'Answer:\\n' + message['content'] + eos_token + '\\n\\n' }}
{%- else %}
{{- 'Question:\\n' + message['content'] + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'Answer:\\n' }}
{%- endif %}"""
"""For base models: words that a text could have, and the end of a text as the end of a turn."""

TEMPLATES = {"plain": PLAIN}
"""Templates that ``chat_template`` takes by name."""

_FOLD = (
    "{% if messages|length > 1 and messages[0]['role'] == 'system' %}{% set messages = [{'role': messages[1]['role'], "
    "'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{% endif %}\n"
)
_BOS = "{{ bos_token }}{# the tokenizer's, not the template's own #}"
_SYSTEM, _USER = "\x02system", "\x02user"
_RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token"}


def named_template(chat_template: str) -> str:
    """The template of a name in :data:`TEMPLATES`, or the given Jinja text.

    Raises:
        ConfigError: it is neither.
    """
    if "{" not in chat_template and chat_template not in TEMPLATES:
        raise ConfigError(
            f"data.task.init_args.chat_template: {chat_template!r} is not the text of a Jinja template, and not the "
            f"name of one: give the text, or {' or '.join(TEMPLATES)}"
        )
    return TEMPLATES.get(chat_template, chat_template)


def complete_template(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Change the tokenizer's chat template so that it takes what is rendered with it.

    A template that refuses or drops a system turn gets the system's text at the start of the user's turn. One that
    writes no BOS, for a tokenizer that puts one before every text, begins with it. The switches in ``kwargs`` become
    defaults of the template.

    Args:
        tokenizer: has a chat template, which is replaced.
        kwargs: values of the template's variables, such as ``enable_thinking``.

    Raises:
        ConfigError: the template does not read one of the variables, or drops what users say.
    """
    own = tokenizer.get_chat_template()
    template = _switches(kwargs, own) + own
    user = {"role": "user", "content": _USER}
    alone = _rendered(tokenizer, [user], template)
    with_system = _rendered(tokenizer, [{"role": "system", "content": _SYSTEM}, user], template)
    if _USER not in alone + with_system:
        raise ConfigError(
            "model.policy.path: the chat template does not write the text of a user's turn: give another one as "
            "data.task.init_args.chat_template"
        )
    if _SYSTEM not in with_system or _USER not in with_system:
        template = _FOLD + template
    if lacks_bos(tokenizer, alone or with_system):
        template = _BOS + template
    names = tokenizer.chat_template
    tokenizer.chat_template = {**names, "default": template} if isinstance(names, dict) else template


def stops_of(tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    """What ends a completion under the tokenizer's chat template, beside EOS; ``None`` where nothing does.

    After :data:`PLAIN` a base model writes the next question instead of EOS, even after examples that end with EOS
    (seen with Gemma-3-270m). An exported tokenizer has the text of the template, and no longer its name.
    """
    return ["\n\nQuestion:"] if PLAIN in tokenizer.get_chat_template() else None


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    chat_template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The text of a chat, up to the place where the assistant's answer begins.

    Args:
        tokenizer: has the chat template.
        messages: the chat.
        chat_template: a template to use instead.
        tools: JSON schemas of the tools that the policy may call.

    Raises:
        ConfigError: the template refuses the chat.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                list(map(dict, messages)),
                tools=cast(Any, tools),
                chat_template=chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(
            f"data.task: the chat template refuses a chat of the turns {roles} ({error}): change the prompts, or give "
            "another template as data.task.init_args.chat_template"
        ) from error


def lacks_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokenizer puts a BOS before every text, and a rendered one does not begin with it."""
    bos = tokenizer.bos_token
    return bos is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id] and not text.startswith(bos)


def template_notes(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """What a user should know of how some chats are rendered, a sentence each."""
    template = tokenizer.get_chat_template()
    notes = []
    if _FOLD in template and any(chat[0]["role"] == "system" for chat in chats):
        notes.append("the chat template takes no system turn: the system prompt goes into the first user turn")
    if template.startswith(_BOS) and PLAIN not in template:
        notes.append(
            f"the chat template writes no {tokenizer.bos_token}, which the tokenizer puts before every text: prompts "
            "begin with it"
        )
    twice = 2 * (tokenizer.bos_token or "\0")
    if any(render(tokenizer, chat).startswith(twice) for chat in chats[:1]):
        notes.append(
            f"prompts begin with {tokenizer.bos_token} twice: remove it from the data, for the chat template writes it"
        )
    dated = "{% macro strftime_now(format) %}\x02{% endmacro %}" + template
    if any("\x02" in render(tokenizer, chat, dated) for chat in chats[:1]):
        fix = ": to fix it, set model.policy.chat_template_kwargs.date_string, such as 26 Jul 2024"
        notes.append(
            "the chat template writes today's date, so prompts change from day to day"
            + (fix if "date_string" in template else "")
        )
    return notes


def _switches(kwargs: Mapping[str, Any], template: str) -> str:
    """Jinja statements that set defaults of the template's variables, which a caller of the template may override."""
    for name in kwargs:
        if name in _RESERVED or not name.isidentifier() or not re.search(rf"\b{name}\b", template):
            tested = sorted(set(re.findall(r"\b([a-z_]+) is (?:not )?(?:un)?defined", template)) - _RESERVED)
            read = f"the switches that it tests for are {', '.join(tested)}" if tested else "it has no such switch"
            raise ConfigError(
                f"model.policy.chat_template_kwargs: the chat template does not read {name}: {read}; remove {name}"
            )
    return "".join(
        f"{{% set {name} = {name} if {name} is defined else {value!r} %}}\n" for name, value in kwargs.items()
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], template: str) -> str:
    """The text of a chat; empty if the template refuses it."""
    try:
        return render(tokenizer, messages, template)
    except ConfigError:
        return ""
