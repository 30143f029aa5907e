"""The schema inside of a vendor's request, in JSON Schema's words."""

from __future__ import annotations

from grpo_lightning.verifiers.json.keywords import LISTED, NAMED, SINGLE, TYPES, asserted_keywords, nodes
from grpo_lightning.verifiers.json.reader import SHALLOW, Json, NotJSON, parse

# Where vendors' requests hold a schema.
_WRAPPERS = (
    "schema",  # OpenAI, inside of json_schema; vLLM and llama.cpp beside type: json_object; Anthropic's output_format
    *("response_format", "json_schema", "format", "text"),  # OpenAI; Ollama's format
    "schema_definition",  # Mistral, inside of json_schema
    *(
        "function",
        "parameters",
        "parametersJsonSchema",
        "parameters_json_schema",
    ),  # functions of OpenAI, Mistral, Gemini
    *("input_schema", "inputSchema", "outputSchema", "output_format", "output_config"),  # Anthropic, MCP
    *("toolConfig", "toolSpec", "json"),  # Bedrock
    *("responseSchema", "response_schema", "responseJsonSchema", "response_json_schema"),  # Gemini
    *("generationConfig", "generation_config"),
    *("structured_outputs", "guided_json", "extra_body"),  # vLLM
)
# Lists of tools, of which there must be one: OpenAI, Anthropic, Bedrock; OpenAI's older requests; Gemini.
_LISTS = ("tools", "functions", "functionDeclarations", "function_declarations")
# What vendors put beside it, and is an object.
_BESIDE = {"annotations", "cache_control", "_meta", "tool_choice"}
# Gemini's schemas are written in OpenAPI's dialect.
_OPENAPI = ("responseSchema", "response_schema")
# Gemini's types are in capitals, and the Berkeley function-calling leaderboard has some of Python's; any is no type.
_TYPE_OF = {**{name: name for name in TYPES}, "dict": "object", "tuple": "array", "float": "number", "any": None}


def unwrap(schema: Json) -> Json:
    """The schema inside of a vendor's request, or the schema itself if it is not wrapped.

    A wrapper has no keyword of JSON Schema (``type`` with a value that is not a JSON type, such as ``json_schema`` or
    ``function``, is none), exactly one member that vendors put a schema, or another wrapper, into, and beside it
    neither other objects nor names of types, but in a description: ``{"schema": {"type": "string"}, "name": "string"}``
    lists fields. The member may be JSON text, or a list of one tool.

    Types that are written as Gemini or the Berkeley leaderboard write them become JSON Schema's.

    Raises:
        ValueError: there are several tools.
    """
    while (member := _member(schema)) is not None:
        name, schema = member
        if name in _OPENAPI:
            schema = _from_openapi(schema)
    if any(_is_foreign(node.get("type")) for node in nodes(schema)):
        schema = _from_openapi(schema)
    return schema


def _member(wrapper: Json) -> tuple[str, Json] | None:
    """The name and the value of the member that holds the schema; ``None`` for what is no wrapper."""
    if isinstance(wrapper, str):
        inside = _read(wrapper)
        return None if inside is None else ("", inside)
    if isinstance(wrapper, list):
        # A list of one schema may ask for a list. A tool is nothing but a tool.
        tools = [tool for tool in wrapper if isinstance(tool, dict) and _member(tool) is not None]
        return ("", _only(tools)) if tools and len(tools) == len(wrapper) else None
    if not isinstance(wrapper, dict) or asserted_keywords(wrapper):
        return None
    inner = {name: _held(name, value) for name, value in wrapper.items() if name not in _BESIDE}
    names = [name for name, value in inner.items() if value is not None]
    if len(names) > 1:
        # What a request with tools wants as its answer is its other member.
        names = [name for name in names if name not in _LISTS]
    if (
        len(names) != 1
        or names[0] not in (*_WRAPPERS, *_LISTS)
        or any(v in TYPES for name, v in wrapper.items() if isinstance(v, str) and name != "description")
    ):
        return None
    held = inner[names[0]]
    return names[0], _only(held) if isinstance(held, list) else held


def _held(name: str, value: Json) -> Json | None:
    """The object, or the list of tools, that a member of a wrapper holds, ``None`` if it holds none."""
    if isinstance(value, dict):
        # OpenAI's Responses API has text.format; others may have a field of that name.
        return value if name != "text" or isinstance(value.get("format"), dict) else None
    if isinstance(value, str) and name in _WRAPPERS:
        return _read(value)
    if isinstance(value, list) and name in _LISTS and value and all(isinstance(tool, dict) for tool in value):
        return value
    return None


def _only(tools: list[Json]) -> Json:
    if len(tools) > 1:
        raise ValueError(f"the schema is a request with {len(tools)} tools: give the schema of one")
    return tools[0]


def _read(text: str) -> Json | None:
    """The object that a JSON text is, ``None`` if it is anything else."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return parse(text, SHALLOW).value
    except NotJSON:
        return None


def _is_foreign(kind: Json) -> bool:
    return isinstance(kind, str) and kind not in TYPES and kind.lower() in _TYPE_OF


def _from_openapi(node: Json) -> Json:
    """A schema in JSON Schema's words: types in small letters, OpenAPI's ``nullable`` as a type."""
    if isinstance(node, list):
        return [_from_openapi(part) for part in node]
    if not isinstance(node, dict):
        return node
    schema = dict(node)
    for keyword, value in node.items():
        if keyword in NAMED and isinstance(value, dict):
            schema[keyword] = {name: _from_openapi(part) for name, part in value.items()}
        elif keyword in LISTED or keyword in SINGLE:
            schema[keyword] = _from_openapi(value)
    kind = schema.get("type")
    if isinstance(kind, str) and kind.lower() in _TYPE_OF:
        known = _TYPE_OF[kind.lower()]
        if known is None:
            del schema["type"]
        else:
            schema["type"] = [known, "null"] if schema.get("nullable") is True else known
    return schema
