"""Moving the reference to the policy: weights, and low-rank adapters, mixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SNAPSHOT = "reference"
"""The name of the adapter that is the reference."""


class MovableReference:
    """The part of a policy that moves its reference, and saves one that has moved."""

    model: Any
    reference_form: str
    reference_model: nn.Module | None
    _reference_moved = False

    @property
    def lm(self) -> Any:
        """The causal LM itself."""
        raise NotImplementedError

    def sync_reference(self, alpha: float = 1.0) -> None:
        """Move the reference: ``reference <- alpha * policy + (1 - alpha) * reference`` (arXiv 2404.09656).

        A copy moves in its weights. Under LoRA a second, frozen adapter moves and the base stays untouched; where the
        reference was the base itself (``adapter-off``), the first move adds that adapter. With ``alpha`` 1 the
        reference then equals the policy bit for bit; below 1 an adapter is the nearest of its rank to the mix.

        Raises:
            RuntimeError: the policy keeps no reference.
        """
        with torch.no_grad():
            mix(self._movable_reference(), self._reference_tensors(of_policy=True), alpha)
        self._reference_moved = True

    def reference_state(self) -> dict[str, Tensor]:
        """The reference's tensors if it has moved, for a checkpoint; else nothing: it is what was loaded."""
        return self._reference_tensors() if self._reference_moved else {}

    def load_reference_state(self, state: dict[str, Tensor]) -> None:
        """Take up a reference that had moved; an empty state, or a policy without a reference, is left as it is."""
        if state and self.reference_form != "none":
            with torch.no_grad():
                for name, tensor in self._movable_reference().items():
                    tensor.copy_(state[name])
            self._reference_moved = True

    def _movable_reference(self) -> dict[str, Tensor]:
        if self.reference_form == "none":
            raise RuntimeError("this policy keeps no reference: model.policy.reference is none, or beta is 0")
        if self.reference_form == "adapter-off":
            add_snapshot(self.model, of_base=True)
            self.reference_form = "snapshot"
        return self._reference_tensors()

    def _reference_tensors(self, of_policy: bool = False) -> dict[str, Tensor]:
        """The reference's tensors, or those of the policy that they move to, under the same names."""
        if self.reference_form == "copy":
            model = self.lm if of_policy else self.reference_model
            assert model is not None
            return {name: parameter.data for name, parameter in model.named_parameters()}
        return adapter_tensors(self.model, "default" if of_policy else SNAPSHOT)


def add_snapshot(model: Any, of_base: bool = False) -> None:
    """Give a peft model a second, frozen adapter: the reference of a policy that starts adapted.

    Args:
        model: with an adapter ``default``, which stays the active one.
        of_base: the new adapter does nothing; otherwise it has the values of the first.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.add_adapter(SNAPSHOT, model.peft_config["default"])
    values = adapter_tensors(model, "default")
    with torch.no_grad():
        for name, tensor in adapter_tensors(model, SNAPSHOT).items():
            tensor.copy_(values[name])
            if of_base and ("lora_B" in name or "lora_embedding_B" in name):
                tensor.zero_()
    model.base_model.set_adapter("default")
    # peft freezes every adapter that it turns off, a critic's too.
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def adapter_tensors(model: Any, adapter: str) -> dict[str, Tensor]:
    """The tensors of one adapter, by names that all adapters share."""
    return {
        name.replace(f".{adapter}", ""): parameter.data
        for name, parameter in model.named_parameters()
        if f".{adapter}." in f"{name}."
    }


def mix(reference: dict[str, Tensor], policy: dict[str, Tensor], alpha: float) -> None:
    """``reference <- alpha * policy + (1 - alpha) * reference`` in place, tensor by tensor (arXiv 2404.09656).

    With ``alpha`` 1 the values are copied, bit for bit. Low-rank factors ``lora_A`` and ``lora_B`` are mixed as the
    product that they stand for, see :func:`mixed_factors`.

    Args:
        reference: tensors by name.
        policy: tensors of the same names and shapes.
        alpha: from 0 to 1.
    """
    for name, theirs in reference.items():
        ours = policy[name]
        if alpha == 1 or not theirs.is_floating_point():
            theirs.copy_(ours)
        elif "lora_A" in name or "lora_embedding_A" in name:
            partner = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            down, up = mixed_factors(
                (ours.flatten(1), policy[partner].flatten(1)), (theirs.flatten(1), reference[partner].flatten(1)), alpha
            )
            theirs.copy_(down.view_as(theirs))
            reference[partner].copy_(up.view_as(reference[partner]))
        elif "lora_B" not in name and "lora_embedding_B" not in name:
            theirs.lerp_(ours.to(theirs.dtype), alpha)


def mixed_factors(
    policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], alpha: float
) -> tuple[Tensor, Tensor]:
    """Factors of rank r nearest to ``alpha B_p A_p + (1 - alpha) B_r A_r``.

    That sum has a rank of up to 2r. The truncated singular value decomposition is its best approximation of rank r
    (Eckart and Young), hence never further off than mixing A and B apart, which adds
    ``- alpha (1 - alpha) (B_p - B_r)(A_p - A_r)``. It is exact where the sum has rank r, as it has at the first move
    away from a fresh adapter, whose B is 0.

    Args:
        policy: ``A_rI`` and ``B_Or``, of rank r between ``I`` inputs and ``O`` outputs.
        reference: the same of the reference.
        alpha: the policy's share.

    Returns:
        ``A_rI`` and ``B_Or``, float32.
    """
    (down_p, up_p), (down_r, up_r) = policy, reference
    up = torch.cat([alpha * up_p.float(), (1 - alpha) * up_r.float()], dim=1)
    down = torch.cat([down_p.float(), down_r.float()], dim=0)
    # Of up @ down, whose full size is never built: both are reduced to a triangle first.
    up_q, up_triangle = torch.linalg.qr(up)
    down_q, down_triangle = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(up_triangle @ down_triangle.T, full_matrices=False)
    rank = len(down_p)
    root = values[:rank].sqrt()
    # Between few inputs or outputs there are fewer than r values; the rest of the rank is not needed.
    new_down = down.new_zeros(down_p.shape)
    new_up = up.new_zeros(up_p.shape)
    new_down[: len(root)] = root[:, None] * (right[:rank] @ down_q.T)
    new_up[:, : len(root)] = (up_q @ left[:, :rank]) * root
    return new_down, new_up
