"""The policy of a config without its weights, and whose memory each tensor of a module is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.commands.plan.meter import HOST, MemoryMeter
from grpo_lightning.constraints.grammar import Grammars
from grpo_lightning.functional import InPlaceEmbedding
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.models.adapters import REFERENCE, VALUE
from grpo_lightning.models.weightless import weightless
from grpo_lightning.speed.passes import pass_overhead
from grpo_lightning.speed.vocabulary import InPlaceGradients
from grpo_lightning.types import AllowedTokens, TokenRows


class AnyGrammars(Grammars):
    """Stand for the grammars of rows that are not read: every token is allowed, and its masks take their memory.

    Args:
        vocabulary: rows of the output head.
    """

    def __init__(self, vocabulary: int) -> None:
        self.words = -(-vocabulary // 32)

    def start(self, grammar: str) -> Any:
        return grammar

    def allowed(self, matchers: Sequence[Any]) -> Tensor:
        return torch.full((len(matchers), self.words), -1, dtype=torch.int32)

    def advance(self, matchers: Sequence[Any], tokens: Sequence[int]) -> None:
        """Nothing to do: any token may follow any other."""

    def any_sets(self, tokens: TokenRows) -> AllowedTokens:
        """The tokens allowed at each place of some completions, at the most memory: every place has a separate set."""
        rows, width = len(tokens), int(tokens.completion_lengths_N.max())
        set_NT = torch.arange(rows * width).view(rows, width)
        return AllowedTokens(torch.full((rows * width, self.words), -1, dtype=torch.int32), set_NT)


class WeightlessPolicy(Policy):
    """A policy for rehearsals under a :class:`MemoryMeter`. Of its path it reads the architecture, no weights.

    Args:
        config: as for :class:`Policy`.
        with_reference: as for :class:`Policy`.
        on_cuda: plan for a GPU, where weights that are kept in host memory do not count.
    """

    grammars: AnyGrammars

    def __init__(self, config: PolicyConfig, with_reference: bool, on_cuda: bool) -> None:
        with weightless():
            super().__init__(config, with_reference=with_reference)
        self.shortcuts.plan_for("cuda" if on_cuda else "cpu", self.lm)
        self.on_cuda = on_cuda
        vocabulary = self.lm.get_output_embeddings().weight.shape[0]
        self.meter = MemoryMeter(vocabulary, expands_products=not on_cuda)
        self.grammars = AnyGrammars(vocabulary)
        self._mark_passes()

    @property
    def pass_overhead(self) -> int:
        return pass_overhead(self.lm.get_decoder(), "cuda" if self.on_cuda else "cpu")

    @contextmanager
    def rollout_mode(self) -> Iterator[PreTrainedModel]:
        """What a rollout takes between its passes is the part ``cache``."""
        with super().rollout_mode() as lm, self.meter.counting_as("cache"):
            yield lm

    def _mark_passes(self) -> None:
        """What the language model finds or leaves in its cache is the part ``cache``, the rest ``activations``."""
        parts: list[str] = []

        def before(lm: Any, args: Any, kwargs: Any) -> None:
            parts.append(self.meter.part)
            self.meter.part = "activations"
            for tensor in _tensors_in(kwargs.get("past_key_values")):
                self.meter.assign(tensor, "cache")

        def after(lm: Any, args: Any, kwargs: Any, output: Any) -> None:
            self.meter.part = parts.pop()
            for tensor in _tensors_in(getattr(output, "past_key_values", None)):
                self.meter.assign(tensor, "cache")

        decoder = self.lm.get_decoder()
        decoder.register_forward_pre_hook(before, with_kwargs=True)
        decoder.register_forward_hook(after, with_kwargs=True)

    def keep_pristine_weights(self) -> None:
        """Merge the adapter once, so that the copies of the weights it goes into exist, as after a first rollout."""
        with self.meter, self.rollout_mode():
            for tensor in self.merge.pristine.values():
                self.meter.assign(tensor, HOST if self.on_cuda else "merge copy")


def watch(module: nn.Module, meter: MemoryMeter, loaded: Sequence[nn.Module] = ()) -> None:
    """Give a module's weights fake memory, and sort the weights and their gradients into parts.

    The policy's parts are ``weights``, ``adapter``, ``reference`` and ``critic``; any other submodule of the module,
    such as a teacher, is a part by its own name.

    Args:
        module: its submodule ``policy`` is what it trains.
        meter: counts the weights.
        loaded: models that the module uses; those that are not its submodules are the part ``other models``.
    """
    meter.adopt(module)
    own = set(module.parameters())
    for model in loaded:
        if not own & set(model.parameters()) and any(parameter.is_meta for parameter in model.parameters()):
            meter.adopt(model)
            for parameter in model.parameters():
                meter.assign(parameter, "other models")
    in_place = _added_in_place(module)
    for name, parameter in module.named_parameters():
        meter.assign(parameter, _part_of(name))
        if parameter.requires_grad and not any(parameter is weight for weight, _ in in_place):
            parameter.register_post_accumulate_grad_hook(lambda weight: meter.assign(_grad_of(weight), "gradients"))
    for weight, user in in_place:
        user.register_forward_pre_hook(_gradient_maker(weight, meter))


def _part_of(name: str) -> str:
    owner, _, rest = name.partition(".")
    if owner != "policy":
        return owner
    if rest.startswith("reference."):
        return "reference"
    if ".lora_" not in rest:
        return "weights"
    _, adapter, *_ = rest.split(".lora_")[1].split(".")
    return {REFERENCE: "reference", VALUE: "critic"}.get(adapter, "adapter")


def _added_in_place(module: nn.Module) -> list[tuple[Tensor, nn.Module]]:
    """The trained weights whose gradients are added in place, which a hook on them would prevent, and who uses them."""
    found: list[tuple[Any, nn.Module]] = [
        (part.weight, part) for part in module.modules() if isinstance(part, InPlaceEmbedding)
    ]
    policies = [part for part in module.modules() if isinstance(part, Policy) and part.shortcuts.uses(InPlaceGradients)]
    found += [(policy.lm.get_output_embeddings().weight, policy.lm.get_decoder()) for policy in policies]
    return [(weight, user) for weight, user in found if weight.requires_grad]


def _gradient_maker(weight: Tensor, meter: MemoryMeter) -> Any:
    """Before a pass that will end in such a gradient, makes it, so that it is of the part ``gradients``."""

    def make(*_: Any) -> None:
        if weight.grad is None and torch.is_grad_enabled():
            weight.grad = torch.zeros_like(weight)
            meter.assign(weight.grad, "gradients")

    return make


def _grad_of(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _tensors_in(cache: Any) -> Iterator[Tensor]:
    for layer in getattr(cache, "layers", []):
        for value in vars(layer).values():
            if isinstance(value, Tensor):
                yield value
