"""Generated texts with the JSON to extract from them, for runs without a data set or a large model."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lightning.tasks._generate import Generated, require
from grpo_lightning.types import Prompt

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "city": {"type": ["string", "null"]},
        "items": {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 1},
            "minProperties": 1,
        },
    },
    "required": ["name", "city", "items"],
    "additionalProperties": False,
}

_NAMES = ("Anna", "Ben", "Eva", "Max", "Mia", "Omar", "Sara", "Tom")
_CITIES = ("Bern", "Kyiv", "Lima", "Oslo", "Paris", "Quito", "Rome", "Tokyo")
_THINGS = ("apples", "books", "cards", "coins", "cups", "eggs", "lamps", "pens", "shells", "shirts", "stamps", "tins")
_IN_A_CITY = (
    "{name} from {city} ordered {items}.",
    "{name} lives in {city} and wants {items}.",
    "Send {items} to {name} in {city}.",
)
_ANYWHERE = ("{name} ordered {items}.", "{name} wants {items}.", "Send {items} to {name}.")


@dataclass(frozen=True)
class Order:
    """The content of one text."""

    name: str
    city: str | None
    items: tuple[tuple[str, int], ...]

    def document(self) -> dict[str, Any]:
        """Return the gold document, with its keys in the order of the text."""
        return {"name": self.name, "city": self.city, "items": dict(self.items)}

    def content(self) -> str:
        """Return a key that ignores the order of the things: such orders have equal documents."""
        return json.dumps(self.document(), sort_keys=True)


class Extraction(Generated[Order]):
    """Generated sentences that state an order, to be turned into a JSON object.

    A text and its solution::

        Send 3 pens, 12 eggs and 40 cups to Anna in Rome.

        {"name":"Anna","city":"Rome","items":{"pens":3,"eggs":12,"cups":40}}

    The city is ``null`` if the text names none. The prompt template asks for such an object in words, with its keys,
    and one worked example comes before it. The schema is in ``metadata["schema"]`` and the gold object is the
    ``answer``, as ``JSONSchemaVerifier`` expects. Any two orders differ in more than their words or the order of their
    things, and no order is in two splits, whatever the seeds.

    Args:
        min_items: minimum number of different things per order.
        max_items: maximum number of different things per order, at most 12.
        max_count: largest count of a thing; the smallest is 2.
        show_schema: whether the prompt ends with the schema. Small models copy it instead of answering.
        shots: number of worked examples before every prompt.
        options: options of :class:`Generated`.
    """

    name = "extraction"
    more = "max_items or max_count"
    default_template = (
        'Extract the order as one JSON object with the keys "name", "city" (null if the text names none) and "items" '
        "(each thing with its number). Answer with the JSON only.\n\n{prompt}"
    )

    def __init__(
        self,
        min_items: int = 1,
        max_items: int = 3,
        max_count: int = 99,
        show_schema: bool = False,
        shots: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(shots=shots, **options)
        self.min_items = min_items
        self.max_items = max_items
        self.max_count = max_count
        self.show_schema = show_schema
        require(min_items >= 1, "min_items", min_items, "must be at least 1")
        require(max_items >= min_items, "max_items", max_items, f"must be at least min_items, {min_items}")
        require(max_items <= len(_THINGS), "max_items", max_items, f"must be at most {len(_THINGS)}")
        require(max_count >= 2, "max_count", max_count, "must be at least 2")

    def _draw(self, generator: random.Random) -> Order:
        things = generator.sample(_THINGS, generator.randint(self.min_items, self.max_items))
        return Order(
            name=generator.choice(_NAMES),
            city=generator.choice((*_CITIES, None)),
            items=tuple((thing, generator.randint(2, self.max_count)) for thing in things),
        )

    def _content(self, row: Order) -> str:
        return row.content()

    def _prompt(self, row: Order, generator: random.Random) -> Prompt:
        *others, last = (f"{count} {thing}" for thing, count in row.items)
        items = f"{', '.join(others)} and {last}" if others else last
        template = generator.choice(_IN_A_CITY if row.city else _ANYWHERE)
        text = template.format(name=row.name, city=row.city, items=items)
        messages = self.messages(text)
        if self.show_schema:
            messages[-1]["content"] += f"\n\nThe JSON object must fit this schema:\n{json.dumps(SCHEMA)}"
        return Prompt(
            messages=messages,
            answer=row.document(),
            metadata={"schema": SCHEMA},
            solution=json.dumps(row.document(), separators=(",", ":")),
        )
