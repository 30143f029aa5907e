"""The critic: token-level values from a linear head on hidden states, of the policy's own trunk or another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.adapters import VALUE, add_adapter
from grpo_lightning.models.checks import can_share_prompts, causal_lm_of
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.loading import load_model
from grpo_lightning.models.policy import Policy
from grpo_lightning.speed.shared_prompt import PredictingStates, predicting_states
from grpo_lightning.types import TokenRows

CriticForm = Literal["shared", "separate", "adapter"]


class ValueHead(nn.Linear):
    """Linear on a hidden state, in float32 whatever the precision of the trunk. Starts at zero, so values do too."""

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__(hidden_size, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> values ``[...]``."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())[..., 0]


class Critic(nn.Module):
    """Values of the states of a completion: state ``t`` is the text before token ``t``.

    The hidden state that predicts a token has seen exactly that text, and the value is read from it.

    Args:
        policy: whose trunk it shares, or whose base its adapter is on. Kept out of the critic's own parameters.
        form: ``shared``, the policy's trunk; ``adapter``, a second LoRA adapter on the policy's base; ``separate``,
            another model.
        path: what a ``separate`` one is loaded from, ``None`` for where the policy comes from. The other options of
            loading are the policy's.
        frozen: train no more of a ``separate`` one than its head.

    Raises:
        ConfigError: the path, or what lies there, cannot be used.
    """

    def __init__(self, policy: Policy, form: CriticForm, path: str | None = None, frozen: bool = False) -> None:
        super().__init__()
        self.form = form
        self._policy = (policy,)  # in a tuple, where torch does not look for submodules
        self.backbone: nn.Module | None = None
        self.shares_prompts = policy.shares_prompts
        """Whether what several rows have in common may run once."""
        if form == "separate":
            own = policy.config
            config = own if path is None else replace(own, path=path, revision=None)
            self.backbone = self._backbone(config, policy, "model.policy.path" if path is None else "model.critic_path")
            if frozen:
                self.backbone.requires_grad_(False)
        elif form == "adapter":
            add_adapter(policy.model, VALUE, trained=True)
        with self.trunk() as lm:
            self.head = ValueHead(lm.get_output_embeddings().weight.shape[1], policy.device)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The head, and what is trained of a trunk that is not the policy's."""
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return own + self._policy[0].value_parameters()

    @contextmanager
    def trunk(self) -> Iterator[PreTrainedModel]:
        """The language model whose hidden states the head reads. A backward pass belongs inside."""
        (policy,) = self._policy
        if self.form == "adapter":
            with policy.with_adapter(VALUE) as lm:
                yield lm
        else:
            yield policy.lm if self.backbone is None else causal_lm_of(self.backbone)

    def state_values(self, lm: PreTrainedModel, tokens: TokenRows, train_trunk: bool = True) -> Tensor:
        """Values of the states before each token, by a pass of a trunk.

        Args:
            lm: what :meth:`trunk` gave.
            tokens: rows as for :meth:`Policy.logprobs`; of :meth:`TokenRows.with_end`, the values of the states after
                the last tokens are there too.
            train_trunk: whether gradients pass into the trunk.

        Returns:
            ``values_NT``, float32, 0 after each row's last token.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and train_trunk), self._policy[0].recomputing(lm):
            states = predicting_states(lm.get_decoder(), tokens)
        return self.values(states, tokens)

    def values(self, states: PredictingStates, tokens: TokenRows) -> Tensor:
        """``values_NT`` of hidden states that a pass over the tokens gave: of the state before each token."""
        return states.spread(self.head(states.hidden_MD), tokens)

    # -- construction -----------------------------------------------------------------------------------------------

    def _backbone(self, config: PolicyConfig, policy: Policy, key: str) -> nn.Module:
        """A language model for values alone, of the policy's vocabulary; ``key`` names its path in an error."""
        model = cast(nn.Module, load_model(config, key)[0])
        lm = causal_lm_of(model)
        policy.shortcuts.install_in(lm)
        words, own = (len(cast(Tensor, one.get_input_embeddings().weight)) for one in (lm, policy.lm))
        if words != own:
            raise ConfigError(
                f"model.critic_path: {config.path} has another vocabulary ({words} tokens) than the policy ({own}): "
                "name a model with the policy's tokenizer"
            )
        head = lm.get_output_embeddings()
        if head.weight is not lm.get_input_embeddings().weight:
            head.requires_grad_(False)  # no value comes from it
        if config.gradient_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.eval().to(policy.device)
        self.shares_prompts = policy.shares_prompts and can_share_prompts(model, "critic")
        return model.train()
