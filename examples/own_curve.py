"""A curve of your own: its declaration, and a module that logs it, named by its class_path in own_curve.yaml.

grpo fit --config configs/quickstart.yaml --config examples/own_curve.yaml
"""

from __future__ import annotations

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.curves import Curve, Reduction, declare
from grpo_lightning.rollout import Experience

DISTINCT = declare(
    Curve(
        name="completion/distinct",
        unit="share",
        reduction=Reduction.MEAN,
        chart="Truncated",  # a chart of TensorBoard whose curves have the same range
        meaning="number of different completions of a group, divided by its size",
        healthy="near 1",
        otherwise="near 1 / group_size: sampling has collapsed; raise data.sampling.temperature",
        bar="distinct",  # its label in the progress bar
    )
)


class WatchedGRPO(GRPOModule):
    """GRPO that logs how many completions of a group differ."""

    step_means = (*GRPOModule.step_means, DISTINCT.name)

    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        texts, size = [attempt.completion.text for attempt in experience.first_attempts], experience.recipe.group_size
        groups = [texts[start : start + size] for start in range(0, len(texts), size)]
        # A sum and the number of its values: the mean is over the groups of all ranks.
        metrics.add(DISTINCT.name, sum(len(set(group)) / size for group in groups), len(groups))
        return super().targets(experience, metrics)
