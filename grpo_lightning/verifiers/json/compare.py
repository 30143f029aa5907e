"""Compares a JSON document with the gold one: exactly, or with some of the freedom that a task may allow."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_lightning.verifiers.json.extract import Json

# Values compared for one verdict, about a quarter of a second. Only arrays without order come near it.
MAX_COMPARED = 500_000

# The fields to compare, each with the fields inside of it; empty for the whole field.
FieldTree = Mapping[str, "FieldTree"]


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
        return _Comparison(self).equal(gold, other)


class _Comparison:
    """One comparison, with the count of what it took."""

    def __init__(self, equality: Equality) -> None:
        self.allow = equality
        self.compared = 0

    def equal(self, gold: Json, other: Json) -> bool:
        self.compared += 1
        if isinstance(gold, dict):
            return isinstance(other, dict) and self._objects(gold, other)
        if isinstance(gold, list):
            if not isinstance(other, list) or len(gold) != len(other):
                return False
            return all(map(self.equal, gold, other)) if self.allow.array_order else self._in_any_order(gold, other)
        if isinstance(gold, (int, float)) and not isinstance(gold, bool):
            return isinstance(other, (int, float)) and not isinstance(other, bool) and self._numbers(gold, other)
        # Without the types, True would equal 1.
        return type(gold) is type(other) and gold == other

    def _numbers(self, gold: float, other: float) -> bool:
        allowed = max(self.allow.rel_tol * abs(gold), self.allow.abs_tol)
        # Without the second condition, a difference that is rounded down to 0 would do: 2**53 + 1 against 2.0**53.
        return gold == other or (allowed > 0 and abs(other - gold) <= allowed)

    def _objects(self, gold: dict[str, Json], other: dict[str, Json]) -> bool:
        if len(gold) != len(other) and not self.allow.extra_fields:
            return False
        for key, value in gold.items():
            if key not in other or not self.equal(value, other[key]):
                return False
        return not self.allow.key_order or [key for key in other if key in gold] == list(gold)

    def _in_any_order(self, gold: list[Json], other: list[Json]) -> bool:
        """Whether the elements can be paired off, by augmenting paths, since equality with tolerance is no equivalence.

        Elements that are written the same are paired first, which is all there is to do for most arrays.
        """
        places = defaultdict(list)
        for place, value in enumerate(other):
            places[self._written(value)].append(place)
        place_of: dict[int, int] = {}
        unpaired = []
        for index, value in enumerate(gold):
            same = places[self._written(value)]
            if same:
                place_of[index] = same.pop()
            else:
                unpaired.append(index)
        index_at = {place: index for index, place in place_of.items()}
        return all(self._pair(index, gold, other, place_of, index_at) for index in unpaired)

    def _pair(
        self, start: int, gold: list[Json], other: list[Json], place_of: dict[int, int], index_at: dict[int, int]
    ) -> bool:
        """Find a place for one more element, moving others to another place where that helps."""
        reached_from: dict[int, int] = {}
        waiting = [start]
        for index in waiting:
            for place, value in enumerate(other):
                if place in reached_from or not self._within_limit(gold[index], value):
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

    def _within_limit(self, gold: Json, other: Json) -> bool:
        if self.compared > MAX_COMPARED:
            raise TooManyPairs
        return self.equal(gold, other)

    def _written(self, value: Json) -> str:
        return json.dumps(value, sort_keys=not self.allow.key_order)


def field_tree(fields: Sequence[str]) -> FieldTree:
    """``["name", "address.city"]`` as ``{"name": {}, "address": {"city": {}}}``.

    Raises:
        ValueError: a field is named twice, by itself or as a part of another, or a name is empty.
    """
    tree: dict[str, dict] = {}
    for field in sorted(fields):
        *parents, name = field.split(".")
        branch = tree
        for parent in parents:
            # Sorted, "address" comes before "address.city", and is still empty then.
            if branch.get(parent) == {}:
                raise ValueError(f"fields: {field!r} is a part of a field that is named, too")
            branch = branch.setdefault(parent, {})
        if name in branch or "" in (name, *parents):
            raise ValueError(f"fields: {field!r} is named twice or empty")
        branch[name] = {}
    return tree


def select(value: Json, tree: FieldTree) -> Json:
    """A document with nothing but the named fields of its objects, through arrays; an empty tree names all."""
    if not tree:
        return value
    if isinstance(value, list):
        return [select(element, tree) for element in value]
    if isinstance(value, dict):
        return {key: select(inner, tree[key]) for key, inner in value.items() if key in tree}
    return value


def has_selected(value: Json, tree: FieldTree) -> bool:
    """Whether a document has any of the named fields at all."""
    if isinstance(value, list):
        return any(has_selected(element, tree) for element in value)
    return isinstance(value, dict) and any(key in tree for key in value)
