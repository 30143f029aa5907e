"""The moving reference: exactness, conditions, checkpoints, several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from grpo_lightning.algorithms import DistillationModule
from grpo_lightning.callbacks import ReferenceSync, RunCheckpoint
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, PolicyConfig
from grpo_lightning.models.mixing import mixed_factors
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.reference import CopyReference
from grpo_lightning.rollout.batch import token_rows
from tests.toy import LetterVerifier, Watch, fit, grpo, rollouts, same, trainer

LORA = LoRAConfig(r=4, alpha=8)
TOKENS = token_rows([[1, 6, 40], [1, 50]], [[60, 61, 62], [70]], 0)
FORMS: dict[str, dict[str, Any]] = {
    "copy": {},
    "adapter-off": {"lora": LORA},
    "snapshot": {"lora": LORA, "reference": "snapshot"},
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FORMS[request.param]


def moved(path: str, form: dict[str, Any], seed: int = 0) -> Policy:
    """A policy that has moved away from its reference."""
    policy = Policy(PolicyConfig(path=path, **form), with_reference=True)
    move(policy, seed)
    return policy


def move(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def delta_weights(policy: Policy, adapter: str) -> dict[str, torch.Tensor]:
    return {
        name: module.get_delta_weight(adapter)
        for name, module in policy.lm.named_modules()
        if hasattr(module, "get_delta_weight")
    }


# -- the move itself --------------------------------------------------------------------------------------------------


def test_after_a_hard_move_the_reference_is_the_policy_bit_for_bit(model_path: str, form: dict[str, Any]) -> None:
    policy = moved(model_path, form)
    before, _ = policy.logprobs(TOKENS, reference=True)
    trained = [parameter.detach().clone() for parameter in policy.trainable_parameters()]
    base = {name: p.detach().clone() for name, p in policy.lm.named_parameters() if "lora_" not in name}
    ours, _ = policy.logprobs(TOKENS)
    assert not torch.equal(before, ours)
    policy.sync_reference()
    assert torch.equal(policy.logprobs(TOKENS, reference=True)[0], ours)
    assert torch.equal(policy.logprobs(TOKENS)[0], ours), "the policy has not changed"
    assert all(torch.equal(a, b) for a, b in zip(trained, policy.trainable_parameters(), strict=True))
    if form:
        assert same(base, {name: p for name, p in policy.lm.named_parameters() if "lora_" not in name})
    # The reference stays where it is while the policy moves on.
    move(policy, seed=1)
    assert torch.equal(policy.logprobs(TOKENS, reference=True)[0], ours)
    assert not torch.equal(policy.logprobs(TOKENS)[0], ours)


def test_a_soft_move_of_a_copy_mixes_the_weights_once_tied_ones_too(model_path: str) -> None:
    policy = moved(model_path, {})
    assert isinstance(policy.reference, CopyReference)
    ours = {name: p.detach().clone() for name, p in policy.lm.named_parameters()}
    theirs = {name: p.detach().clone() for name, p in policy.reference.lm.named_parameters()}
    policy.sync_reference(alpha=0.25)
    for name, parameter in policy.reference.lm.named_parameters():
        torch.testing.assert_close(parameter.data, 0.25 * ours[name] + 0.75 * theirs[name])
    assert policy.reference.lm.get_output_embeddings().weight is policy.reference.lm.get_input_embeddings().weight


def test_the_first_soft_move_from_a_fresh_adapter_is_exact(model_path: str) -> None:
    policy = moved(model_path, FORMS["adapter-off"])
    ours = delta_weights(policy, "default")
    policy.sync_reference(alpha=0.3)
    for name, delta in delta_weights(policy, "reference").items():
        torch.testing.assert_close(delta, 0.3 * ours[name], atol=1e-6, rtol=1e-4)


def test_a_later_soft_move_is_nearer_to_the_mix_than_mixing_the_factors(model_path: str) -> None:
    policy = moved(model_path, FORMS["snapshot"])
    policy.sync_reference()
    move(policy, seed=1)
    ours, theirs = delta_weights(policy, "default"), delta_weights(policy, "reference")
    parameters = dict(policy.model.named_parameters())
    apart = {}
    for name, module in policy.lm.named_modules():
        if name in ours:
            (a, b), (c, d) = (
                (module.lora_A[adapter].weight, module.lora_B[adapter].weight) for adapter in ("default", "reference")
            )
            apart[name] = module.scaling["default"] * (0.4 * b + 0.6 * d) @ (0.4 * a + 0.6 * c)
    policy.sync_reference(alpha=0.4)
    assert len(parameters) == len(dict(policy.model.named_parameters()))
    for name, delta in delta_weights(policy, "reference").items():
        wanted = 0.4 * ours[name] + 0.6 * theirs[name]
        error, error_apart = (wanted - delta).norm(), (wanted - apart[name]).norm()
        assert 0 < error < error_apart
        # Eckart and Young: what is missing are the values behind the r biggest.
        torch.testing.assert_close(error, torch.linalg.svdvals(wanted)[4:].norm(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(6, 5, 2), (3, 8, 4), (8, 3, 4), (2, 2, 4), (16, 16, 4)])
def test_mixed_factors_are_the_best_of_their_rank(inputs: int, outputs: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(rank * inputs)
    a, c = (torch.randn(rank, inputs, generator=generator) for _ in range(2))
    b, d = (torch.randn(outputs, rank, generator=generator) for _ in range(2))
    down, up = mixed_factors((a, b), (c, d), 0.7)
    assert (down.shape, up.shape) == (a.shape, b.shape)
    wanted = 0.7 * b @ a + 0.3 * d @ c
    left, values, right = torch.linalg.svd(wanted, full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    torch.testing.assert_close(up @ down, best, atol=1e-5, rtol=1e-4)


def test_a_policy_without_a_reference_has_none_to_move(tiny_model: Callable[[str], str]) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("llama")))
    assert policy.reference_state() == {}
    with pytest.raises(RuntimeError, match="keeps no reference"):
        policy.sync_reference()


# -- in a run ---------------------------------------------------------------------------------------------------------


def test_the_kl_is_zero_right_after_a_hard_move(model_path: str, form: dict[str, Any], tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, grpo(model_path, beta=0.05, **form), 7, callbacks=[ReferenceSync(every_n_steps=3), watch])
    kls = [logged["policy/kl"] for logged in watch.logged]
    assert [kl == 0 for kl in kls] == [True, False, False, True, False, False, True]
    assert [logged["reference/moves"] for logged in watch.logged] == [0, 0, 1, 1, 1, 2, 2]


def test_a_soft_move_only_lowers_the_kl(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    kls = []
    for callbacks in ([], [ReferenceSync(every_n_steps=2, alpha=0.5)], [ReferenceSync(every_n_steps=2)]):
        watch = Watch()
        fit(tmp_path, grpo(tiny_model("llama"), beta=0.05), 3, callbacks=[*callbacks, watch])
        kls.append(watch.logged[-1]["policy/kl"])
    assert kls[0] > kls[1] > kls[2] == 0


def test_moves_fall_on_the_first_training_step_behind_so_many_optimizer_steps(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    # Two optimizer steps a training step: moves are due after 3, 6, 9; the ends of training steps are 2, 4, 6, 8, 10.
    watch = Watch()
    module = grpo(tiny_model("llama"), beta=0.05, updates_per_rollout=2)
    fit(tmp_path, module, 10, callbacks=[ReferenceSync(every_n_steps=3), watch])
    assert [logged["reference/moves"] for logged in watch.logged] == [0, 1, 2, 2, 3]


def test_a_resumed_run_moves_as_its_own_option_says(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    def run(steps: int, every: int, **options: Any) -> list[float]:
        watch = Watch()
        callbacks = [ReferenceSync(every_n_steps=every), RunCheckpoint(), watch]
        module = grpo(tiny_model("llama"), beta=0.05)
        fit(tmp_path, module, steps, callbacks=callbacks, enable_checkpointing=True, **options)
        return [logged["reference/moves"] for logged in watch.logged]

    assert run(3, 20) == [0, 0, 0]
    # By hand: due since step 2, so after the fourth, which is the first that sees the option, and then after the sixth.
    assert run(7, 2, ckpt_path=tmp_path / "checkpoints/last.ckpt") == [1, 1, 2, 2]


def test_it_can_wait_for_a_kl(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    watch, plain = Watch(), Watch()
    fit(tmp_path, grpo(tiny_model("llama"), beta=0.01), 6, callbacks=[plain])
    kls = [logged["policy/kl"] for logged in plain.logged]
    wanted = sorted(kls)[3]
    fit(tmp_path, grpo(tiny_model("llama"), beta=0.01), 6, callbacks=[ReferenceSync(1, min_kl=wanted), watch])
    first = next(step for step, kl in enumerate(kls) if kl >= wanted)
    moves = [logged["reference/moves"] for logged in watch.logged]
    assert moves[: first + 1] == [0] * first + [1]
    assert first > 0
    assert all(
        (now > before) == (logged["policy/kl"] >= wanted)
        for before, now, logged in zip([0, *moves], moves, watch.logged, strict=False)
    )


class Accuracies(pl.Callback):
    """Says what each validation found: a script in place of a measurement."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        values = dict(zip(range(1, 100), self.values, strict=False))
        pl_module._evaluation.compute = lambda: {"accuracy": torch.tensor(values[trainer.global_step])}


def test_it_can_wait_for_a_better_accuracy(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    watch = Watch()
    sync = ReferenceSync(every_n_steps=2, if_accuracy_improved=True)
    accuracies = Accuracies([0.1, 0.3, 0.2, 0.3, 0.4, 0.5, 0.6])
    fit(
        tmp_path, grpo(tiny_model("llama"), beta=0.05), 7, callbacks=[accuracies, sync, watch],
        limit_val_batches=1, val_check_interval=1,
    )  # fmt: skip
    # By hand: after step 2 (0.3 > 0.1); not after 4 (0.3 again); after 5 (0.4), which was due since 4; after 6 (0.5).
    # A validation after step t shows in the curve of step t + 1.
    assert [logged["reference/moves"] for logged in watch.logged] == [0, 0, 1, 1, 1, 2, 3]
    assert [logged["policy/kl"] == 0 for logged in watch.logged] == [True, False, True, False, False, True, True]


def test_without_an_accuracy_it_can_wait_for_a_better_reward(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    class Rewards(Accuracies):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            found = {"accuracy": torch.tensor(0.0), "reward": torch.tensor(self.values[trainer.global_step - 1])}
            pl_module._evaluation.compute = lambda: found

    watch = Watch()
    module = grpo(tiny_model("llama"), beta=0.05, verifiers=lambda completion, answer: -(len(completion) + 1) / 7)
    fit(
        tmp_path, module, 4, limit_val_batches=1, val_check_interval=1,
        callbacks=[Rewards([-0.9, -0.5, -0.6, 0.0]), ReferenceSync(1, if_accuracy_improved=True), watch],
    )  # fmt: skip
    assert [logged["reference/moves"] for logged in watch.logged] == [0, 0, 1, 1]


def test_the_sanity_check_is_not_the_first_validation(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    class Sane(Accuracies):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking:
                pl_module._evaluation.compute = lambda: {"accuracy": torch.tensor(0.9)}
            else:
                super().on_validation_epoch_end(trainer, pl_module)

    watch = Watch()
    fit(
        tmp_path, grpo(tiny_model("llama"), beta=0.05), 3, limit_val_batches=1, val_check_interval=1,
        callbacks=[Sane([0.1, 0.2, 0.3]), ReferenceSync(every_n_steps=1, if_accuracy_improved=True), watch],
        num_sanity_val_steps=2,
    )  # fmt: skip
    assert [logged["reference/moves"] for logged in watch.logged] == [0, 0, 1]


def test_without_validation_there_is_no_accuracy_to_wait_for(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ReferenceSync\.if_accuracy_improved: this run does not validate"):
        fit(tmp_path, grpo(tiny_model("llama"), beta=0.05), 1, callbacks=[ReferenceSync(if_accuracy_improved=True)])


@pytest.mark.parametrize(
    ("kind", "form", "alpha", "interrupted_at"),
    [
        ("llama", "copy", 1.0, 2), ("lfm2", "copy", 0.5, 3), ("llama", "adapter-off", 0.5, 3),
        ("lfm2", "adapter-off", 1.0, 2), ("llama", "snapshot", 1.0, 2), ("lfm2", "snapshot", 0.5, 3),
    ],
)  # fmt: skip
def test_a_resumed_run_repeats_the_uninterrupted_one(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: str, form: str, alpha: float, interrupted_at: int
) -> None:
    """Each kind of reference moves by whole and by half, and is tried with both shapes of model."""

    def run(folder: Path, steps: int, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        module = grpo(tiny_model(kind), beta=0.5, **FORMS[form])
        callbacks = [ReferenceSync(every_n_steps=2, alpha=alpha), RunCheckpoint()]
        weights = fit(folder, module, steps, callbacks=callbacks, enable_checkpointing=True, **options)
        return weights, module.policy.reference_state()

    whole, reference = run(tmp_path / "whole", 5)
    run(tmp_path / "part", interrupted_at)
    last = tmp_path / "part/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["reference"].keys() == reference.keys()
    resumed, resumed_reference = run(tmp_path / "part", 5, ckpt_path=last)
    assert same(whole, resumed)
    assert same(reference, resumed_reference)


def test_a_run_without_moves_keeps_its_checkpoint_small(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    fit(tmp_path, grpo(tiny_model("llama"), beta=0.5), 1, callbacks=[RunCheckpoint()], enable_checkpointing=True)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["reference"] == {}


@pytest.mark.parametrize("lora", [None, LORA], ids=["copy", "snapshot"])
def test_all_processes_move_the_same(tiny_model: Callable[[str], str], tmp_path: Path, lora: LoRAConfig | None) -> None:
    class Write(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            torch.save(pl_module.policy.reference_state(), tmp_path / f"{trainer.world_size}-{trainer.global_rank}.pt")

    def sync() -> ReferenceSync:
        # The condition is decided on what is reduced over the ranks: each by its own KL would part them.
        return ReferenceSync(every_n_steps=1, alpha=0.7, min_kl=1e-9)

    for devices in (1, 2):
        parallel = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        pl.seed_everything(0, verbose=False)
        module = grpo(tiny_model("lfm2"), beta=0.5, lora=lora)
        options: dict[str, Any] = parallel
        trainer(tmp_path, 4, callbacks=[sync(), Write()], **options).fit(
            module, datamodule=rollouts(prompts_per_step=5)
        )
    one, rank0, rank1 = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert rank0
    assert same(rank0, rank1)
    if lora is None:
        for name, tensor in one.items():
            torch.testing.assert_close(rank0[name], tensor, atol=2e-4, rtol=1e-3)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_before_the_model_is_loaded(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    without_kl, without_reference = grpo(tiny_model("llama"), beta=0.0), grpo(tiny_model("llama"), beta=0.1)
    without_reference.policy_config.reference = "none"
    for module in (without_kl, without_reference):
        with pytest.raises(ConfigError, match=r"no reference to move: set model.beta above 0 .* to auto"):
            fit(tmp_path, module, 1, callbacks=[ReferenceSync()])
        assert not hasattr(module, "policy")
    # A teacher that is the reference may follow the policy, but not by a KL that nothing measures.
    taught = DistillationModule(
        policy=PolicyConfig(path=tiny_model("llama")), verifiers=[LetterVerifier()], teacher="reference"
    )
    with pytest.raises(ConfigError, match=r"ReferenceSync\.min_kl: this run has no KL to the reference"):
        fit(tmp_path, taught, 1, callbacks=[ReferenceSync(min_kl=0.1)])
    watch = Watch()
    fit(tmp_path, taught, 1, callbacks=[ReferenceSync(every_n_steps=1), watch])
    assert watch.logged[-1]["reference/moves"] == 1


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"alpha": 0.0}, {"alpha": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"ReferenceSync.{name}"):
        ReferenceSync(**options)
