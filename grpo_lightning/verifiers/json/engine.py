"""jsonschema_rs as this package uses it: nothing fetched, no panics, bounded patterns, a large stack for deep JSON."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from grpo_lightning.verifiers.json import patterns
from grpo_lightning.verifiers.json.documents import Documents, registry
from grpo_lightning.verifiers.json.ecma import VALUES
from grpo_lightning.verifiers.json.reader import Json

if TYPE_CHECKING:
    from jsonschema_rs import Validator, ValidatorMap

# For 10,000 levels, 26 KB each; the schemas that were tried took below 1 KB. Memory is taken as it is reached.
_STACK_BYTES = 256 * 2**20
# The keyword of the schema that replaces a document that is not registered.
_MARK = "x-not-registered"
_KINDS: tuple[Json, ...] = (None, True, 0, "", [], {})
# What validation need not reach.
_CHOICES = {"anyOf", "oneOf", "if", "then", "else"}
# What the library says of items that are nested more than 255 deep, where it compares them for uniqueItems.
_TOO_DEEP = "Recursion limit reached"

Result = TypeVar("Result")
_stack_size_lock = threading.Lock()


class TooDeep(ValueError):
    """Items that must be unique are nested too deeply to compare them."""


class Engine:
    """Compiles one schema and parts of it, in the same way.

    A reference to a document that is not registered is not a mistake until validation reaches it: the document is
    replaced by a schema that notes that.

    Args:
        root: the schema.
        check_formats: whether ``format`` is checked.
        documents: what its references may lead to, besides itself.
        uri: what its references are relative to, where it has no ``$id``.

    Raises:
        ValueError: it is not a valid schema, or any validation reaches a document that is not registered.
    """

    def __init__(self, root: Json, check_formats: bool, documents: Documents, uri: str) -> None:
        self._root = root
        self._options: dict[str, Any] = {"validate_formats": check_formats, "offline": True}
        if documents:
            self._options["registry"] = registry(documents)
        if uri:
            self._options["base_uri"] = uri
        self._patterns: tuple[str, ...] = ()
        self._missing: set[str] = set()
        self._reached = threading.local()
        try:
            self.validator = self._compile_root(documents)
        except ValueError as error:
            if not self._replace_missing():
                raise
            try:
                self.validator = self._compile_root(documents)
            except ValueError:
                raise error from None
            self._refuse_if_always_reached()

    def fits(self, document: Json) -> bool:
        """Whether a document fits the schema.

        Raises:
            ValueError: the validation reaches a document that is not registered.
            TooComplicated: a pattern takes too many steps.
            TooDeep: items that must be unique are nested too deeply.
        """
        if self._patterns:
            patterns.check(document, self._patterns)
        self._reached.uri = None
        with depth_noticed():
            fits = self.validator.is_valid(document)
        if self._reached.uri is not None:
            raise self._not_present()
        return fits

    def compile(self, schema: Json) -> Validator:
        """The validator of some rules of the schema."""
        import jsonschema_rs

        return jsonschema_rs.validator_for(schema, **self._options)

    def parts(self) -> ValidatorMap:
        """The validators of all parts of the schema."""
        import jsonschema_rs

        return jsonschema_rs.validator_map_for(self._root, **self._options)

    def _compile_root(self, documents: Documents) -> Validator:
        """Compile with the engine for patterns that takes linear time, or else with the one that takes all patterns."""
        self._options["pattern_options"] = patterns.linear()
        try:
            return self.compile(self._root)
        except ValueError as error:
            schemas = [self._root, *(patterns.read_schema(text) for _, text in documents)]
            self._patterns = patterns.backtracking_patterns(schemas)
            if not self._patterns:
                raise
            self._options["pattern_options"] = patterns.backtracking()
            try:
                return self.compile(self._root)
            except ValueError:
                raise error from None

    def _replace_missing(self) -> bool:
        """Replace what is not registered by a schema that notes when it is reached."""
        if not any(_references(self._root)):
            return False
        if isinstance(self._root, dict) and "$schema" in self._root:
            try:
                self.compile({"$schema": self._root["$schema"]})
            except ValueError:
                return False
        reached = self._reached

        class NotRegistered:
            def __init__(self, parent: object, uri: str, path: object) -> None:
                self.uri = uri

            def validate(self, instance: object) -> None:
                reached.uri = self.uri
                raise ValueError(self.uri)

        del self._options["offline"]
        # With a retriever, nothing is fetched either.
        self._options["retriever"] = lambda uri: _stub(uri, self._root)
        self._options["keywords"] = {_MARK: NotRegistered}
        return True

    def _refuse_if_always_reached(self) -> None:
        """Refuse the schema if what is not registered is reached by every kind of document, without any choice."""
        try:
            validator = self.compile(_without_choices(self._root))
        except ValueError:
            return  # A reference leads into a choice.
        for value in _KINDS:
            self._reached.uri = None
            validator.is_valid(value)
            if self._reached.uri is None:
                return
        raise self._not_present()

    def _not_present(self) -> ValueError:
        return ValueError(
            f"the schema refers to {self._reached.uri}, which is not present: register it by the option 'schemas'"
        )


@contextmanager
def depth_noticed() -> Iterator[None]:
    """Raise ``TooDeep`` where the library compares items that are nested too deeply."""
    try:
        yield
    except ValueError as error:
        if str(error) != _TOO_DEEP:
            raise
        raise TooDeep from error


@contextmanager
def panics_raised() -> Iterator[None]:
    """Raise a panic of the library, which is not an ``Exception`` and would end the run, as a ``RuntimeError``."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"jsonschema_rs broke on the schema: {str(error)[:300]}") from error


def on_large_stack(call: Callable[[], Result]) -> Result:
    """Call a function in a thread whose stack suffices for documents of any depth that is read.

    The library recurses, and ends the process where the stack of the thread that it runs in does not suffice.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="deep JSON")
    with _stack_size_lock:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _without_choices(node: Json) -> Json:
    """A schema with nothing but what all documents must fit. A choice of one is none."""
    if isinstance(node, list):
        return [_without_choices(part) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        name: part if name in VALUES else _without_choices(part)
        for name, part in node.items()
        if name not in _CHOICES or (isinstance(part, list) and len(part) == 1)
    }


def _stub(uri: str, root: Json) -> dict[str, Json]:
    """A schema that notes that it is reached, and so does every part of it that any reference of a schema names."""
    # With the two keywords, so does asking which members of a document it evaluates.
    stub: dict[str, Json] = {_MARK: uri, "additionalProperties": {_MARK: uri}, "items": {_MARK: uri}}
    for reference in _references(root):
        fragment = unquote(reference.partition("#")[2])
        if fragment.startswith("/"):
            node = stub
            for step in fragment[1:].split("/"):
                node = node.setdefault(step.replace("~1", "/").replace("~0", "~"), {_MARK: uri})
        elif fragment:
            stub.setdefault("$defs", {})[fragment] = {"$anchor": fragment, _MARK: uri}
    return stub


def _references(root: Json) -> Iterator[str]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            waiting += node.values()
