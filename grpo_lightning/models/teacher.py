"""What the policy is distilled from: another model, the policy's reference, or the policy itself with more context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import OutputHead, token_logprobs
from grpo_lightning.models.checks import can_share_prompts, causal_lm_of, check_model, output_head
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.loading import base_path, load_frozen
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.positions import check_length
from grpo_lightning.models.quantised import Quantization
from grpo_lightning.models.tokenizer import plain_tokenizer
from grpo_lightning.models.weightless import is_weightless
from grpo_lightning.shipped import shipped_model
from grpo_lightning.speed.shared_prompt import PredictingStates, predicting_states
from grpo_lightning.types import TokenRows

TeacherForm = Literal["self", "reference"]

_ROW = "what the teacher reads and a completion"


@dataclass
class TeacherConfig:
    """How to load a teacher that is another model. It is never trained, and checkpoints do not hold it.

    Args:
        path: hub name or local folder of a transformers model or of a peft adapter, with the policy's tokenizer. The
            weights may be quantised (a ``quantization_config`` in its ``config.json``).
        revision: branch, tag or commit of a hub model.
        dtype: type of the weights.
        quantization: quantise the linear layers to 4 (``nf4``) or 8 bits (``int8``) while loading, which needs
            ``grpo-lightning[quantised]``; ``None``: as they are.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; ``None`` is transformers' choice.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Quantization | None = None
    attn_implementation: str | None = None

    @property
    def model(self) -> PolicyConfig:
        """The same, as a model is loaded."""
        return PolicyConfig(shipped_model(self.path), self.revision, self.dtype, self.attn_implementation)

    def check_tokenizer(self, policy: PreTrainedTokenizerBase) -> None:
        """Check that token ids mean the same to teacher and policy, before either model is loaded.

        Raises:
            ConfigError: the teacher has no tokenizer, or another one.
        """
        path = self.model.path
        tokenizer = plain_tokenizer(base_path(path), self.revision, "model.teacher.path")
        theirs, ours = tokenizer.get_vocab(), policy.get_vocab()
        if theirs != ours:
            token = min(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
            raise ConfigError(
                f"model.teacher.path: {path} has another tokenizer than the policy ({token!r} is token "
                f"{theirs.get(token)} there, and {ours.get(token)} for the policy): name one of the policy's family"
            )


class Teacher(nn.Module, ABC):
    """A model whose distributions the policy is compared with; its passes have no gradient.

    Args:
        policy: what it teaches. Kept out of the teacher's own modules.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = (policy,)  # in a tuple, where torch does not look for submodules
        self.shares_prompts = policy.shares_prompts
        """Whether what several rows have in common may run once."""

    @abstractmethod
    def model(self) -> AbstractContextManager[PreTrainedModel]:
        """The teacher's causal LM, for forward passes inside."""

    def states(self, tokens: TokenRows) -> PredictingStates:
        """The hidden states that predict the completion tokens of some rows."""
        with torch.no_grad(), self.model() as lm:
            return predicting_states(lm.get_decoder(), tokens)

    def head(self, temperature: float) -> OutputHead:
        """What turns these states into logits over the sampling temperature, of the policy's vocabulary."""
        (policy,) = self._policy
        with self.model() as lm:
            return output_head(lm, temperature).first(len(policy.lm.get_output_embeddings().weight))

    def logprobs(self, tokens: TokenRows, temperature: float) -> Tensor:
        """``logprobs_NT`` of the completion tokens, 0 after each row's last."""
        states, head = self.states(tokens), self.head(temperature)
        with torch.no_grad():
            logprobs_M, _ = token_logprobs(
                states.hidden_MD,
                head.weight_VD,
                states.targets(tokens),
                bias_V=head.bias_V,
                temperature=head.temperature,
                softcap=head.softcap,
            )
        return states.spread(logprobs_M, tokens)


class OtherModel(Teacher):
    """A separate, frozen model.

    Args:
        config: how to load it.
        policy: what it teaches.
        longest_row: tokens of the longest row that it reads.

    Raises:
        ConfigError: the path, or what lies there, cannot be used.
    """

    def __init__(self, config: TeacherConfig, policy: Policy, longest_row: int) -> None:
        key = "model.teacher.path"
        model = load_frozen(config.model, config.quantization, key)
        super().__init__(policy)
        self.lm = causal_lm_of(model)
        if is_weightless():
            return
        check_model(self.lm, config.path, key)
        check_length(self.lm, longest_row, _ROW)
        self.shares_prompts = policy.shares_prompts and can_share_prompts(self.lm, "teacher")
        rows, own = (len(lm.get_output_embeddings().weight) for lm in (self.lm, policy.lm))
        if rows < own:
            raise ConfigError(
                f"{key}: {config.path} has {rows} rows in its output head, fewer than the policy ({own}), so it lacks "
                "tokens: name another teacher"
            )

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        yield self.lm


class OwnModel(Teacher):
    """The policy's reference, or the policy itself: no second copy of the weights.

    Args:
        policy: what it teaches.
        form: which of the two.
        longest_row: tokens of the longest row that it reads.

    Raises:
        ConfigError: the model has no position for that many tokens.
    """

    def __init__(self, policy: Policy, form: TeacherForm, longest_row: int) -> None:
        super().__init__(policy)
        check_length(policy.lm, longest_row, _ROW)
        self.form = form

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        (policy,) = self._policy
        if self.form == "self":
            yield policy.lm
            return
        with policy.reference.model() as lm:
            yield lm
