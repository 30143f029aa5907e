"""The sample of ``grpo init --task tools``: a tool that knows a shop's prices, and questions that need it."""

from __future__ import annotations

import json
import random

PRICES = {
    "pencil": 45, "eraser": 30, "ruler": 85, "notebook": 240, "marker": 165, "folder": 110, "stapler": 720,
    "envelope": 12, "stamp": 95, "lamp": 310, "crayon": 25, "scale": 540, "sharpener": 60, "calendar": 890,
    "sticker": 8, "poster": 460,
}  # fmt: skip
"""In cents."""

_TOOLS = '''\
"""The tools that the policy may call. Replace them by yours, and name them in the config.

The chat template shows a function's name, types and docstring to the policy: each argument needs a type and a line.
"""

# In cents. The policy cannot know them.
PRICES = {{
{prices}
}}


def price(item: str) -> int:
    """Look up the price of one item in cents.

    Args:
        item: the name of the item, such as pencil.
    """
    if item not in PRICES:
        # A ValueError is the policy's mistake, and it reads this text. Any other exception is a bug: the conversation
        # is then excluded and counted as an error, and never gets a reward of 0.
        raise ValueError(f"there is no {{item!r}}; there are: {{', '.join(PRICES)}}")
    return PRICES[item]
'''


def shop_files(train_rows: int = 400, test_rows: int = 100) -> dict[str, str]:
    """``tools.py``, ``train.jsonl`` and ``test.jsonl``. No question is in both."""
    pairs = [(item, count) for item in PRICES for count in range(2, 41)]
    generator = random.Random(0)
    # Only random() is guaranteed to give the same sequence in every version of Python.
    pairs.sort(key=lambda _: generator.random())
    rows = [
        json.dumps({"question": f"What do {count} {item}s cost, in cents?", "answer": str(count * PRICES[item])})
        for item, count in pairs
    ]
    prices = "\n".join(f'    "{item}": {cents},' for item, cents in PRICES.items())
    return {
        "tools.py": _TOOLS.format(prices=prices),
        "train.jsonl": "".join(f"{row}\n" for row in rows[:train_rows]),
        "test.jsonl": "".join(f"{row}\n" for row in rows[train_rows : train_rows + test_rows]),
    }
