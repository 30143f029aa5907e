"""A version of the policy's weights in a folder that the servers see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from grpo_lightning.errors import RunError
from grpo_lightning.models.adapters import POLICY, adapter_parameters
from grpo_lightning.models.policy import Policy

HEAD_FILE = "model-head.safetensors"
PROBE_STD = 0.05


@dataclass(frozen=True)
class Weights:
    """A version of the policy's weights.

    Args:
        version: its name, which no other version has, on any server, in any run.
        folder: where it lies.
        is_adapter: whether it is a LoRA adapter over the server's model, or replaces the server's weights.
    """

    version: str
    folder: Path
    is_adapter: bool

    def write(self, policy: Policy) -> None:
        """Write the policy's weights aside, then put them in place: no server ever sees half a folder.

        Raises:
            RunError: the folder cannot be written.
        """
        aside = self.folder.with_name(f".{self.folder.name}")
        try:
            if self.is_adapter:
                policy.model.save_pretrained(aside, selected_adapters=[POLICY])
            else:
                policy.save_pretrained(aside, merged=True)
                _write_tied_head(policy.lm, aside)
            aside.rename(self.folder)
        except Exception as error:  # safetensors raises its own exceptions for a full disk
            shutil.rmtree(aside, ignore_errors=True)
            raise RunError(
                f"data.engine.shared_dir: the weights cannot be written to {self.folder}: "
                f"{' '.join(str(error).split())}: free space there, or name another folder"
            ) from error

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_tied_head(lm: PreTrainedModel, folder: Path) -> None:
    """Name the output head in the folder, although it is the embedding.

    vLLM on a CPU decodes with a packed copy of the head, and a reload renews only the copies of what the folder names
    (read and tried in 0.32).
    """
    head, words = cast(Any, lm.get_output_embeddings()), cast(Any, lm.get_input_embeddings())
    if head.weight is not words.weight:
        return
    name = next(name for name, module in lm.named_modules() if module is head) + ".weight"
    save_file({name: head.weight.detach().cpu().contiguous()}, folder / HEAD_FILE, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"][name] = HEAD_FILE
        index.write_text(json.dumps(content))


@contextmanager
def noticeable_adapter(policy: Policy) -> Iterator[None]:
    """A fresh adapter does nothing, and whether a server applies it cannot be seen. Inside, it does something."""
    fresh = [p for p in adapter_parameters(policy.model, POLICY) if not p.any()]
    for number, parameter in enumerate(fresh):
        generator = torch.Generator().manual_seed(number)
        parameter.data.copy_(PROBE_STD * torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        for parameter in fresh:
            parameter.data.zero_()
