"""Draw reward and validation accuracy of some runs, from their TensorBoard events, as one picture.

python scripts/plot_runs.py docs/images/quickstart.png runs/quickstart/*
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Okabe and Ito's palette, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CURVES = {"val/accuracy": "greedy accuracy, held-out problems", "reward/mean": "mean reward of a step"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the picture to write")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, len(CURVES), figsize=(9, 3.2), constrained_layout=True)
    for run, colour in zip(arguments.runs, COLOURS, strict=False):
        events = EventAccumulator(str(run))
        events.Reload()
        seed = yaml.safe_load((run / "config.yaml").read_text())["seed_everything"]
        for axis, (name, title) in zip(axes, CURVES.items(), strict=True):
            scalars = events.Scalars(name)
            style = {"marker": "o", "markersize": 3} if name.startswith("val/") else {"alpha": 0.8, "linewidth": 1}
            points = ([scalar.step for scalar in scalars], [scalar.value for scalar in scalars])
            axis.plot(*points, color=colour, label=f"seed {seed}", **style)
            axis.set_title(title, fontsize=10)
    for axis in axes:
        axis.set_xlabel("GRPO step")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower right")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()
