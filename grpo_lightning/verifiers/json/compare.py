"""Compares a JSON document with the gold one: exactly, or with some of the freedom that a task may allow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.verifiers.json.reader import Json

# Values compared for one verdict, about a quarter of a second. Only arrays without order come near it.
MAX_COMPARED = 500_000
_MAX_DIFFERENCE_DEPTH = 8

# The fields to compare, each with the fields inside of it; empty for the whole field.
FieldTree = Mapping[str, "FieldTree"]

# A function that recurses by yielding the call to make, and is sent its result: documents are deeper than Python's
# stack. _run() runs it.
Recursion = Generator[Any, Any, Json]


class TooManyPairs(ValueError):
    """The arrays are too long and too much alike to be paired without their order."""


@dataclass(frozen=True)
class Equality:
    """When a document counts as equal to the gold one. As it stands, exactly when it is the same JSON value.

    1 and 1.0 are the same number; true and 1, null and a missing key, "1" and 1 are not the same.

    Args:
        array_order: whether arrays must have the gold's order.
        key_order: whether objects must have the gold's order of keys.
        rel_tol: how far a number may be off, as a part of the gold number.
        abs_tol: how far a number may be off.
        extra_fields: whether objects may have keys that the gold has not.
    """

    array_order: bool = True
    key_order: bool = False
    rel_tol: float = 0.0
    abs_tol: float = 0.0
    extra_fields: bool = False

    def __call__(self, gold: Json, other: Json) -> bool:
        """Whether ``other`` equals ``gold``.

        Raises:
            TooManyPairs: arrays without order are too long to compare.
        """
        return bool(_run(_Comparison(self).equal(gold, other)))


def _run(call: Recursion) -> Json:
    calls, result = [call], None
    while calls:
        try:
            calls.append(calls[-1].send(result))
            result = None
        except StopIteration as done:
            calls.pop()
            result = done.value
    return result


class _Comparison:
    """One comparison, with the count of what it took."""

    def __init__(self, equality: Equality) -> None:
        self.allow = equality
        self.compared = 0
        self.number_of: dict[int, int] = {}
        self.numbers: dict[Hashable, int] = {}

    def equal(self, gold: Json, other: Json) -> Recursion:
        self.compared += 1
        if isinstance(gold, dict):
            return isinstance(other, dict) and (yield self._objects(gold, other))
        if isinstance(gold, list):
            if not isinstance(other, list) or len(gold) != len(other):
                return False
            in_order = self.allow.array_order
            return (yield self._members(zip(gold, other, strict=True)) if in_order else self._in_any_order(gold, other))
        return self._scalars(gold, other)

    def _members(self, pairs: Iterable[tuple[Json, Json]]) -> Recursion:
        for gold, other in pairs:
            if isinstance(gold, (dict, list)):
                if not (yield self.equal(gold, other)):
                    return False
            elif not self._scalars(gold, other):
                return False
        return True

    def _scalars(self, gold: Json, other: Json) -> bool:
        if isinstance(gold, (int, float)) and not isinstance(gold, bool):
            return isinstance(other, (int, float)) and not isinstance(other, bool) and self._numbers(gold, other)
        # Without the types, True would equal 1.
        return type(gold) is type(other) and gold == other

    def _numbers(self, gold: float, other: float) -> bool:
        allowed = max(self.allow.rel_tol * abs(gold), self.allow.abs_tol)
        # Without the second condition, a difference that is rounded down to 0 would do: 2**53 + 1 against 2.0**53.
        return gold == other or (allowed > 0 and abs(other - gold) <= allowed)

    def _objects(self, gold: dict[str, Json], other: dict[str, Json]) -> Recursion:
        if len(gold) != len(other) and not self.allow.extra_fields:
            return False
        if not gold.keys() <= other.keys():
            return False
        if not (yield self._members((value, other[key]) for key, value in gold.items())):
            return False
        return not self.allow.key_order or [key for key in other if key in gold] == list(gold)

    def _in_any_order(self, gold: list[Json], other: list[Json]) -> Recursion:
        """Whether the elements can be paired, by augmenting paths, since equality with tolerance is not an equivalence.

        Elements that are written the same are paired first, which is all there is to do for most arrays.
        """
        if len(gold) == 1:
            return (yield self.equal(gold[0], other[0]))
        self._number(gold)
        self._number(other)
        places = defaultdict(list)
        for place, value in enumerate(other):
            places[self._key(value)].append(place)
        place_of: dict[int, int] = {}
        unpaired = []
        for index, value in enumerate(gold):
            same = places[self._key(value)]
            if same:
                place_of[index] = same.pop()
            else:
                unpaired.append(index)
        index_at = {place: index for index, place in place_of.items()}
        for index in unpaired:
            if not (yield self._pair(index, gold, other, place_of, index_at)):
                return False
        return True

    def _pair(
        self, start: int, gold: list[Json], other: list[Json], place_of: dict[int, int], index_at: dict[int, int]
    ) -> Recursion:
        """Find a place for one more element, moving others to another place where that helps."""
        reached_from: dict[int, int] = {}
        waiting = [start]
        for index in waiting:
            for place, value in enumerate(other):
                if place in reached_from:
                    continue
                if self.compared > MAX_COMPARED:
                    raise TooManyPairs
                if not (yield self.equal(gold[index], value)):
                    continue
                reached_from[place] = index
                if place in index_at:
                    waiting.append(index_at[place])
                    continue
                free: int | None = place
                while free is not None:
                    mover = reached_from[free]
                    index_at[free] = mover
                    left = place_of.get(mover)
                    place_of[mover], free = free, left
                return True
        return False

    def _number(self, root: Json) -> None:
        """Give the arrays and objects in a document numbers: the same to those that are written the same."""
        containers, waiting = [], [root]
        for value in waiting:
            if isinstance(value, (dict, list)) and id(value) not in self.number_of:
                containers.append(value)
                waiting += value.values() if isinstance(value, dict) else value
        # The inner ones first.
        for value in reversed(containers):
            if isinstance(value, list):
                key: Hashable = tuple(map(self._key, value))
            else:
                members = [(name, self._key(inner)) for name, inner in value.items()]
                key = tuple(members) if self.allow.key_order else frozenset(members)
            self.number_of[id(value)] = self.numbers.setdefault((type(value), key), len(self.numbers))

    def _key(self, value: Json) -> Hashable:
        """The same for values that are written the same."""
        return (type(value), self.number_of[id(value)] if isinstance(value, (dict, list)) else value)


def difference(equality: Equality, gold: Json, other: Json) -> tuple[list[str | int], str]:
    """Where a document first differs from the gold one, and how, a few levels deep."""
    path: list[str | int] = []
    for _ in range(_MAX_DIFFERENCE_DEPTH):
        if isinstance(gold, dict) and isinstance(other, dict):
            missing = [key for key in gold if key not in other]
            extra = [] if equality.extra_fields else [key for key in other if key not in gold]
            if missing or extra:
                return [*path, *(missing or extra)[:1]], "is missing" if missing else "is not in the gold document"
            unequal = [key for key in gold if not equality(gold[key], other[key])]
        elif isinstance(gold, list) and isinstance(other, list) and equality.array_order and len(gold) == len(other):
            unequal = [index for index in range(len(gold)) if not equality(gold[index], other[index])]
        else:
            break
        if not unequal:
            return path, "has another order of keys"
        path.append(unequal[0])
        gold, other = gold[unequal[0]], other[unequal[0]]
    return path, "differs"


def field_tree(fields: Sequence[str]) -> FieldTree:
    """``["name", "address.city"]`` as ``{"name": {}, "address": {"city": {}}}``.

    Raises:
        ConfigError: a field is named twice, by itself or as a part of another, or a name is empty.
    """
    tree: dict[str, dict] = {}
    for field in sorted(fields):
        *parents, name = field.split(".")
        branch = tree
        for parent in parents:
            # Sorted, "address" comes before "address.city", and is still empty then.
            if branch.get(parent) == {}:
                raise ConfigError(f"JSONSchemaVerifier.fields: {field!r} is a part of a field that is also named")
            branch = branch.setdefault(parent, {})
        if name in branch or "" in (name, *parents):
            raise ConfigError(f"JSONSchemaVerifier.fields: {field!r} is named twice or empty")
        branch[name] = {}
    return tree


def select(value: Json, tree: FieldTree) -> Json:
    """A document with nothing but the named fields of its objects, through arrays; an empty tree names all."""
    return _run(_select(value, tree)) if tree else value


def _select(value: Json, tree: FieldTree) -> Recursion:
    if tree and isinstance(value, list):
        elements = []
        for element in value:
            elements.append((yield _select(element, tree)))
        return elements
    if tree and isinstance(value, dict):
        fields = {}
        for key, inner in value.items():
            if key in tree:
                fields[key] = yield _select(inner, tree[key])
        return fields
    return value


def has_selected(value: Json, tree: FieldTree) -> bool:
    """Whether a document has any of the named fields at all."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict) and any(key in tree for key in value):
            return True
    return False
