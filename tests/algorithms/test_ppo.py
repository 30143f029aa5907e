"""PPO: its gradient against formulas written out, each critic and each option, and what the curves say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo_lightning.__main__ import main
from grpo_lightning.algorithms import KLController, PPOModule
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Critic, LoRAConfig, Policy, PolicyConfig
from grpo_lightning.models.value import VALUE
from grpo_lightning.objectives import CISPO, Clip, GSPOToken
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.types import FinishReason
from grpo_lightning.verifiers import Verdict, Verifier
from tests.cli.test_cli import ROOT, few, only_run
from tests.rollout.test_refinement import Parity
from tests.tiny import save_tiny_model
from tests.toy import (
    BrokenVerifier,
    LetterVerifier,
    Watch,
    adam,
    fit,
    lfm2_alone,
    llama_alone,
    rollouts,
    same,
    sgd,
    trainer,
)

LORA = LoRAConfig(r=4, alpha=8)
CRITICS: list[dict[str, Any]] = [{"critic": "shared"}, {"critic": "separate"}, {"critic": "adapter", "lora": LORA}]
NAMES = ["shared", "separate", "adapter"]
# One shape of model per critic, not all for all.
KINDS = ["llama", "lfm2", "lfm2"]
each_critic = pytest.mark.parametrize(("critic", "kind"), list(zip(CRITICS, KINDS, strict=True)), ids=NAMES)
ADAPTIVE = KLController(target=0.5, horizon=50)
PLAIN: dict[str, Any] = {"max_grad_norm": None, "optimizer": sgd, "updates_per_rollout": 1}


def ppo(path: str, **options: Any) -> PPOModule:
    policy = {
        key: options.pop(key)
        for key in ("lora", "quantization", "reference", "gradient_checkpointing")
        if key in options
    }
    options = {"verifiers": [LetterVerifier()], "beta": 0.0, "optimizer": adam} | options
    return PPOModule(policy=PolicyConfig(path=path, **policy), **options)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 2e-5) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=atol, rtol=1e-3)


class StartHead(pl.Callback):
    """Gives the value head a bias to begin with: every value is then that."""

    def __init__(self, bias: float) -> None:
        self.bias = bias

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        torch.nn.init.constant_(pl_module.critic.head.bias, self.bias)


# -- the gradient -----------------------------------------------------------------------------------------------------


def test_without_values_and_with_lambda_1_the_policy_gradient_is_reinforce(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    after = fit(tmp_path, ppo(model_path, **PLAIN, lam=1.0, whiten_advantages=False), 1, rollouts(), callbacks=[watch])
    model = AutoModelForCausalLM.from_pretrained(model_path)
    before = {f"policy.model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    tokens = watch.batches[0].tokens
    loss = torch.zeros(())
    for row, rollout in enumerate(watch.batches[0].attempts):
        prompt = int(tokens.prompt_lengths_N[row])
        ids = torch.tensor([tokens.ids_NL[row, :prompt].tolist() + rollout.completion.token_ids])
        logprobs = model(input_ids=ids).logits[0, prompt - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(-1, ids[0, prompt:, None])[:, 0]
        loss = loss - rollout.reward * chosen.sum() / tokens.completion_lengths_N.sum()
    loss.backward()
    found = {name: before[name] - after[name] for name in before}
    close(found, {f"policy.model.{name}": p.grad for name, p in model.named_parameters()})
    assert max(tensor.abs().max() for tensor in found.values()) > 1e-3
    assert after["critic.head.bias"].abs() > 1e-3, "the critic has learned beside it"


@each_critic
def test_the_gradient_does_not_depend_on_the_split(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: dict[str, Any], kind: str
) -> None:
    model_path = tiny_model(kind)
    options = {**PLAIN, **critic, "beta": 0.1, "value_coef": 1.0}
    whole = fit(tmp_path, ppo(model_path, **options, max_tokens_per_microbatch=100_000), 2)
    for budget in (1, 150):
        close(whole, fit(tmp_path, ppo(model_path, **options, max_tokens_per_microbatch=budget), 2), atol=5e-5)


@each_critic
def test_gradient_checkpointing_changes_memory_alone(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: dict[str, Any], kind: str
) -> None:
    model_path = tiny_model(kind)
    plain = fit(tmp_path, ppo(model_path, **PLAIN, **critic, beta=0.1), 2)
    close(plain, fit(tmp_path, ppo(model_path, **PLAIN, **critic, beta=0.1, gradient_checkpointing=True), 2))


def test_critic_passes_keep_the_token_budget(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    seen: list[tuple[bool, int]] = []

    class Seeing(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            backbone = pl_module.critic.backbone.get_decoder()
            backbone.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append((torch.is_grad_enabled(), tokens_of(**kwargs))),
                with_kwargs=True,
            )

    def tokens_of(input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None, **_: Any) -> int:
        return input_ids.numel() if input_ids is not None else inputs_embeds[..., 0].numel()

    module = ppo(tiny_model("llama"), critic="separate", minibatches_per_update=2, max_tokens_per_microbatch=200)
    fit(tmp_path, module, 2, callbacks=[Seeing()])
    assert {grad for grad, _ in seen} == {True, False}
    assert max(tokens for _, tokens in seen) <= 200


# -- the critics ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("critic", "steps"), list(zip(CRITICS, [30, 30, 45], strict=True)), ids=NAMES)
def test_reward_rises_with_each_critic(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: dict[str, Any], steps: int
) -> None:
    watch = Watch()
    module = ppo(
        tiny_model("llama"), **critic, updates_per_rollout=3, lam=1.0, value_coef=1.0,
        optimizer=partial(torch.optim.AdamW, lr=2e-2, weight_decay=0.0),
    )  # fmt: skip
    fit(tmp_path, module, steps, rollouts(prompts_per_step=4, group_size=8), callbacks=[watch])
    first = sum(logged["reward/mean"] for logged in watch.logged[:4]) / 4
    last = sum(logged["reward/mean"] for logged in watch.logged[-4:]) / 4
    assert last > first + 0.1


class Told(Verifier):
    """Judges by the prompt alone, which a critic can learn to read."""

    def verify(self, sample: Any) -> Verdict:
        return Verdict(correct="ab" in sample.prompt[-1]["content"], format_valid=False)


@pytest.mark.slow
@pytest.mark.parametrize("critic", CRITICS, ids=NAMES)
def test_the_critic_comes_to_explain_the_returns(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: dict[str, Any]
) -> None:
    watch = Watch()
    # The head alone reads little from a random trunk, so a shared trunk learns with it.
    critic = critic | ({"value_coef": 5.0} if critic["critic"] == "shared" else {"critic_warmup_steps": 100})
    module = ppo(
        tiny_model("llama"), **critic, verifiers=[Told(accept_truncated=True)], lam=1.0, value_epsilon=None,
        updates_per_rollout=4,
    )  # fmt: skip
    fit(tmp_path, module, 60, rollouts(prompts_per_step=8, group_size=2), callbacks=[watch])
    explained = [logged["value/explained_variance"] for logged in watch.logged]
    assert explained[0] == 0, "a critic that starts at zero explains nothing"
    assert sum(explained[-4:]) / 4 > 0.3


@each_critic
def test_warming_up_leaves_the_policy_untouched(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: dict[str, Any], kind: str
) -> None:
    model_path = tiny_model(kind)
    start: dict[str, torch.Tensor] = {}

    class Keep(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            start.update({name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad})

    module = ppo(
        model_path, **critic, critic_warmup_steps=4,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    )  # fmt: skip
    after = fit(tmp_path, module, 4, callbacks=[Keep()])
    policy = {id(p) for p in module.policy.trainable_parameters()}
    rests = {name for name, parameter in module.named_parameters() if id(parameter) in policy}
    assert rests
    assert all(torch.equal(after[name], start[name]) for name in rests)
    assert not torch.equal(after["critic.head.weight"], start["critic.head.weight"])
    later = fit(tmp_path, ppo(model_path, **critic, critic_warmup_steps=4), 6)
    assert not all(torch.equal(later[name], start[name]) for name in rests), "after the warm-up the policy learns"


class Gradients(pl.Callback):
    """Looks at the gradients at the end of a step, where they still are."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        parameters = pl_module.policy.value_parameters()
        self.of_values = [0.0 if p.grad is None else float(p.grad.abs().sum()) for p in parameters]


@lfm2_alone
def test_the_critic_of_bfloat16_arithmetic_learns(model_path: str, tmp_path: Path) -> None:
    for critic in CRITICS:
        module = ppo(model_path, **critic, beta=0.1)
        watch, gradients = Watch(), Gradients()
        fit(tmp_path, module, 2, callbacks=[watch, gradients], precision="bf16-mixed")
        assert watch.logged[-1]["optim/value_grad_norm"] > 0
        assert module.critic.head.weight.dtype == torch.float32
        assert all(size > 0 for size in gradients.of_values[1::2])


def test_values_are_those_of_the_text_before_each_token(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    critic = Critic(policy, "shared")
    torch.nn.init.normal_(critic.head.weight)
    data = [([1, 9, 30], [40, 41, 7]), ([1, 9], [50])]
    tokens = token_rows([p for p, _ in data], [c for _, c in data], 0)
    with torch.no_grad(), critic.trunk() as lm:
        values_NT, values_NS = critic.state_values(lm, tokens), critic.state_values(lm, tokens.with_end())
    assert (values_NT.shape, values_NS.shape) == ((2, 3), (2, 4))
    for row, (prompt, completion) in enumerate(data):
        length = len(completion)
        torch.testing.assert_close(values_NT[row, :length], values_NS[row, :length])
        for t in range(length + 1):
            with torch.no_grad():
                text = torch.tensor([prompt + completion[:t]])
                hidden = policy.lm.get_decoder()(input_ids=text).last_hidden_state[0, -1]
                torch.testing.assert_close(values_NS[row, t], critic.head(hidden), atol=1e-5, rtol=1e-4)
    assert (values_NT[1, 1:] == 0).all()
    assert (values_NS[1, 2:] == 0).all()


@lfm2_alone
@pytest.mark.parametrize("reference", ["adapter-off", "snapshot"])
def test_the_critics_adapter_stays_out_of_the_policys_way(model_path: str, tmp_path: Path, reference: Any) -> None:
    module = ppo(model_path, lora=LORA, reference=reference, critic="adapter", beta=0.1)
    fit(tmp_path, module, 4, callbacks=[RunCheckpoint()], enable_checkpointing=True)
    policy = module.policy
    names = {id(p): name for name, p in module.named_parameters()}
    assert all(".default." in names[id(p)] for p in policy.trainable_parameters())
    assert all(f".{VALUE}." in names[id(p)] and p.requires_grad for p in policy.value_parameters())
    assert len(policy.trainable_parameters()) == len(policy.value_parameters()) > 0
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    trained = {names[id(p)] for side in module.trained_sides().values() for p in side}
    assert saved.keys() == trained
    assert {"critic.head.weight", "critic.head.bias"} < saved.keys()
    # The adapter has moved, and neither the policy's log-probs nor its merged form know of it.
    assert max(p.abs().max().item() for p in policy.value_parameters()[1::2]) > 1e-4
    ids = torch.tensor([[1, 9, 30, 40, 41]])
    with torch.no_grad():
        own = policy.lm(input_ids=ids).logits
        with policy.rollout_mode() as merged:
            torch.testing.assert_close(merged(input_ids=ids).logits, own, atol=1e-4, rtol=1e-3)
        with policy.with_adapter(VALUE) as lm:
            assert (lm(input_ids=ids).logits - own).abs().max() > 1e-3
    policy.save_pretrained(tmp_path / "adapter")
    assert not any("value" in str(path) for path in (tmp_path / "adapter").rglob("*"))
    policy.save_pretrained(tmp_path / "merged", merged=True)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(exported(input_ids=ids).logits, own, atol=1e-4, rtol=1e-3)


def test_a_separate_critic_can_be_another_model_with_only_its_head_trained(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", "llama", seed=1, hidden_size=16)
    module = ppo(tiny_model("lfm2"), critic="separate", critic_path=other, critic_frozen=True)
    weights = fit(tmp_path, module, 2)
    assert {name for name in weights if name.startswith("critic")} == {"critic.head.weight", "critic.head.bias"}
    assert module.critic.head.weight.shape == (1, 16)
    free = fit(tmp_path, ppo(tiny_model("lfm2"), critic="separate", critic_path=other), 2)
    assert sum(name.startswith("critic.backbone") for name in free) > 5
    odd = save_tiny_model(tmp_path / "odd", "llama", vocab_size=300)
    with pytest.raises(ConfigError, match=r"model.critic_path: .* has another vocabulary \(300 tokens\)"):
        fit(tmp_path, ppo(tiny_model("llama"), critic="separate", critic_path=odd), 1)


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0}, {"kl_estimator": "k3"}, {"epsilon": 0.01}, {"epsilon_high": 0.001}, {"delta": 1.21},
        {"aggregation": "grpo"}, {"updates_per_rollout": 1}, {"minibatches_per_update": 2}, {"target_kl": 1e-3},
        {"mask_truncated": True}, {"bootstrap_truncated": True}, {"max_grad_norm": 0.1},
        {"gamma": 0.9}, {"lam": 0.2}, {"lam_alpha": 0.1}, {"value_lam": 1.0},
        {"adaptive_kl": KLController(target=0.1, horizon=20)},
        {"whiten_advantages": False},
        {"value_epsilon": 0.01}, {"value_epsilon": None}, {"value_coef": 2.0}, {"value_lr": 1e-3},
        {"critic": "separate"}, {"critic_warmup_steps": 1},
        {"objective": "cispo"}, {"ratio_level": "sequence"}, {"objective": GSPOToken(0.2, None)},
    ],
    ids=lambda options: ", ".join(f"{key}={getattr(value, 'name', value)}" for key, value in options.items()),
)  # fmt: skip
def test_an_option_changes_the_run(
    tiny_model: Callable[[str], str], tmp_path: Path, plain: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    changed = fit(tmp_path, ppo(tiny_model("llama"), **BASE | options), 4, rollouts(**SHORT))
    assert not same(plain, changed)


def test_flat_keys_and_classes_are_the_same_bit_for_bit(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    path = tiny_model("llama")
    for flat, objective in (
        ({"epsilon": 0.01, "delta": 1.1}, Clip(0.01, None, 1.1)),
        ({"objective": "cispo"}, CISPO()),
    ):
        short = fit(tmp_path, ppo(path, **BASE | flat), 4, rollouts(**SHORT))
        assert same(short, fit(tmp_path, ppo(path, **BASE, objective=objective), 4, rollouts(**SHORT)))


BASE: dict[str, Any] = {"beta": 0.5, "updates_per_rollout": 2}
SHORT: dict[str, Any] = {"sampling": SamplingParams(max_new_tokens=12)}


@pytest.fixture(scope="module")
def plain(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return fit(tmp_path_factory.mktemp("plain"), ppo(tiny_model("llama"), **BASE), 4, rollouts(**SHORT))


@pytest.mark.parametrize(
    ("module", "data", "text"),
    [
        ({"gamma": 1.5}, {}, "model.gamma: must be from 0 to 1, not 1.5"),
        ({"lam": -0.1}, {}, "model.lam: must be from 0 to 1, not -0.1"),
        ({"lam_alpha": 0.0}, {}, "model.lam_alpha: must be above 0, or null for lam, not 0.0"),
        ({"value_lam": 1.1}, {}, "model.value_lam: must be from 0 to 1, or null for lam, not 1.1"),
        ({"adaptive_kl": KLController()}, {}, "model.adaptive_kl: starts from beta: set model.beta above 0"),
        ({"beta": 0.1, "adaptive_kl": KLController(target=0)}, {}, "model.adaptive_kl.target: must be above 0"),
        ({"beta": 0.1, "adaptive_kl": KLController(horizon=0)}, {}, "model.adaptive_kl.horizon: must be above 0"),
        ({"value_epsilon": -1.0}, {}, "model.value_epsilon: must be above 0, or null"),
        ({"value_epsilon": 0.0}, {}, "model.value_epsilon: must be above 0, or null"),
        ({"value_coef": 0.0}, {}, "model.value_coef: must be above 0"),
        ({"value_lr": -1.0}, {}, "model.value_lr: must be above 0"),
        ({"value_lr": 0.0}, {}, "model.value_lr: must be above 0"),
        ({"bootstrap_truncated": True, "mask_truncated": True}, {}, "model.bootstrap_truncated: mask_truncated leaves"),
        ({"critic": "adapter"}, {}, "model.critic: adapter needs model.policy.lora"),
        ({"critic_path": "x"}, {}, "model.critic_path: needs critic: separate"),
        ({"critic_frozen": True}, {}, "model.critic_frozen: needs critic: separate"),
        ({"critic_warmup_steps": -1}, {}, "model.critic_warmup_steps: must not be negative"),
        ({"target_kl": 0.0}, {}, "model.target_kl: must be above 0, or null"),
        ({"epsilon": -0.1}, {}, "model: epsilon"),
        ({"updates_per_rollout": 0}, {}, "model.updates_per_rollout: must be at least 1"),
        ({"beta": 0.1, "reference": "none"}, {}, "model.beta: above 0 it needs a reference"),
        ({}, {"sampling": SamplingParams(temperature=0)}, "data.sampling.temperature: greedy completions"),
        ({}, {"refinement": RefinementConfig(mode="distill")}, "data.refinement.mode: distill learns tokens"),
    ],
)
def test_bad_options_are_one_sentence_before_the_model_loads(
    tmp_path: Path,
    tiny_model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    module: dict,
    data: dict,
    text: str,
) -> None:
    monkeypatch.setattr(PPOModule, "configure_model", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=text) as error:
        fit(tmp_path, ppo(tiny_model("llama"), **module), 1, rollouts(**data))
    assert "\n" not in str(error.value)


def test_the_update_ends_early_where_the_kl_passes_its_target(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    found = []
    for target in (None, 1e9, 1e-6):
        watch = Watch()
        fit(tmp_path, ppo(tiny_model("llama"), updates_per_rollout=4, target_kl=target), 4, callbacks=[watch])
        found.append([logged["policy/epochs"] for logged in watch.logged])
    assert found == [[4], [4], [1, 1, 1, 1]]


def test_each_side_has_its_learning_rate_and_its_clip(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    watch = Watch()
    module = ppo(
        tiny_model("llama"), critic="separate", value_lr=1e-3, lr_scheduler=schedule, updates_per_rollout=1,
        optimizer=sgd, max_grad_norm=1e-3,
    )  # fmt: skip
    start: dict[str, torch.Tensor] = {}

    class Keep(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            start.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    after = fit(tmp_path, module, 1, callbacks=[watch, Keep()])
    (logged, *_) = watch.logged
    assert logged["optim/lr"] == pytest.approx(1.0)
    assert logged["optim/value_lr"] == pytest.approx(1e-3)
    for side, lr in (("policy.", 1.0), ("critic.", 1e-3)):
        moved = sum((after[name] - start[name]).square().sum() for name in after if name.startswith(side)) ** 0.5
        assert moved == pytest.approx(lr * 1e-3, rel=1e-2), "a step of SGD, cut to the norm on each side"


# -- what counts ------------------------------------------------------------------------------------------------------


def test_a_truncated_completion_ends_goes_on_or_is_left_out(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    for options in ({}, {"bootstrap_truncated": True}, {"mask_truncated": True}):
        watch = Watch()
        module = ppo(tiny_model("llama"), **PLAIN, **options, lam=1.0, gamma=0.5)
        fit(tmp_path, module, 1, callbacks=[watch, StartHead(0.25)])
        returns = []
        for rollout in watch.batches[0].attempts:
            length, cut = len(rollout.completion.token_ids), rollout.completion.finish_reason is FinishReason.LENGTH
            end = 0.5 * 0.25 if cut and "bootstrap_truncated" in options else rollout.reward
            if not (cut and "mask_truncated" in options):
                returns += [end * 0.5**left for left in range(length)]
        assert watch.logged[0]["return/mean"] == pytest.approx(sum(returns) / len(returns), rel=1e-4)
        assert watch.logged[0]["value/mean"] == pytest.approx(0.25)
        assert 0 < watch.logged[0]["completion/truncated"] < 1


@llama_alone
def test_policy_and_critic_have_their_own_lambdas(model_path: str, tmp_path: Path) -> None:
    """One reward at the end, equal values and gamma 1: only the last TD error is not 0, and lambda weighs it."""
    watch, kept = Watch(), []

    class Keeps(PPOModule):
        def targets(self, *args: Any) -> Any:
            kept.append(super().targets(*args))
            return kept[-1]

    options: dict[str, Any] = {"verifiers": [LetterVerifier()], "beta": 0.0, "whiten_advantages": False, **PLAIN}
    module = Keeps(policy=PolicyConfig(model_path), **options, critic="separate", lam_alpha=0.125, value_lam=0.5)
    fit(tmp_path, module, 1, callbacks=[watch, StartHead(0.25)])
    for row, rollout in enumerate(watch.batches[0].attempts):
        length = len(rollout.completion.token_ids)
        lam, left = max(0, 1 - 8 / length), torch.arange(length - 1, -1, -1)
        error = rollout.reward - 0.25
        torch.testing.assert_close(kept[0].advantages[row, :length], error * lam**left, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(kept[0].returns_NT[row, :length], 0.25 + error * 0.5**left, atol=1e-5, rtol=1e-4)
    assert len({len(rollout.completion.token_ids) for rollout in watch.batches[0].attempts}) > 1
    loss = [
        0.5 * (0.5 * (r.reward - 0.25) * 2 * 0.5**left) ** 2
        for r in watch.batches[0].attempts
        for left in range(len(r.completion.token_ids))
    ]
    assert watch.logged[0]["value/loss"] == pytest.approx(sum(loss) / len(loss), rel=1e-3)


@llama_alone
def test_rows_whose_verifier_broke_are_left_out_of_everything(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    data = rollouts(sampling=SamplingParams(max_new_tokens=30), group_size=8)
    module = ppo(model_path, **PLAIN, verifiers=[BrokenVerifier()], max_error_rate=1.0, lam=1.0)
    fit(tmp_path, module, 1, data, callbacks=[watch])
    (batch,), (logged,) = watch.batches, watch.logged[:1]
    judged = [r for r in batch.attempts if r.verdict.error is None]
    assert 0 < len(judged) < len(batch)
    tokens = sum(len(r.completion.token_ids) for r in judged)
    expected = sum(r.reward * len(r.completion.token_ids) for r in judged) / tokens
    assert logged["return/mean"] == pytest.approx(expected, rel=1e-4)
    assert logged["total/train_tokens"] == tokens


@llama_alone
def test_a_kl_to_the_reference_is_paid_for_on_every_token(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, ppo(model_path, beta=0.3, updates_per_rollout=1, lam=1.0), 3, callbacks=[watch])
    logged, batch = watch.logged[2], watch.batches[2]
    assert logged["policy/kl_coef"] == pytest.approx(0.3)
    assert abs(logged["policy/kl"]) > 1e-3
    lengths = [len(r.completion.token_ids) for r in batch.attempts]
    assert logged["policy/kl_per_completion"] == pytest.approx(logged["policy/kl"] * sum(lengths) / 12, rel=1e-4)


def test_the_coefficient_of_the_kl_adapts_and_is_resumed(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    options = {"beta": 0.1, "updates_per_rollout": 1, "adaptive_kl": KLController(target=1.0, horizon=60)}
    watch = Watch()
    fit(tmp_path, ppo(tiny_model("llama"), **options), 5, callbacks=[watch])
    coefs = [logged["policy/kl_coef"] for logged in watch.logged]
    # By hand: the first KL is 0, so the error is cut at -0.2, for 12 completions of a horizon of 60.
    assert coefs[:2] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 12 / 60)])
    for before, after, logged in zip(coefs, coefs[1:], watch.logged, strict=False):
        assert (after > before) == (logged["policy/kl_per_completion"] > 1.0)
    assert coefs != sorted(coefs, reverse=True), "it has grown as well"


def test_a_kl_that_is_no_number_leaves_the_coefficient_alone(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    class Spoil(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            next(pl_module.policy.reference.parameters()).data.fill_(float("nan"))

    module = ppo(tiny_model("llama"), beta=0.1, updates_per_rollout=1, adaptive_kl=KLController(target=1.0, horizon=60))
    fit(tmp_path, module, 1, callbacks=[Spoil()], limit_train_batches=1, max_epochs=1)
    assert module.skipped.count == 1
    assert module.kl_coef == 0.1


@llama_alone
@pytest.mark.parametrize("whiten", [True, False])
def test_the_gain_is_what_whitening_multiplies_by(model_path: str, tmp_path: Path, whiten: bool) -> None:
    watch = Watch()
    fit(tmp_path, ppo(model_path, **PLAIN, lam=1.0, whiten_advantages=whiten), 1, callbacks=[watch])
    raw = [r.reward for r in watch.batches[0].attempts for _ in r.completion.token_ids]
    # Whitened advantages have a sum of squares of n - 1; before, without values, they are the rewards.
    gain = ((len(raw) - 1) / sum(value**2 for value in raw)) ** 0.5
    assert watch.logged[0]["advantage/gain"] == pytest.approx(gain if whiten else 1.0, rel=1e-4)
    assert watch.logged[0]["advantage/mean"] == pytest.approx(sum(raw) / len(raw), rel=1e-4)


@llama_alone
def test_further_attempts_are_episodes_of_their_own(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    data = rollouts(sampling=SamplingParams(max_new_tokens=80), refinement=RefinementConfig(budget=3, gamma=0.8))
    fit(
        tmp_path,
        ppo(model_path, **PLAIN, verifiers=[Parity(accept_truncated=True)], lam=1.0),
        1,
        data,
        callbacks=[watch],
    )
    (batch,) = watch.batches
    rewards = batch.reward_N.tolist()
    assert len(batch) > batch.first
    for attempt in batch.attempts[batch.first :]:
        rewards[attempt.parent] = max(rewards[attempt.parent], 0.8 * attempt.reward)
    attempts = list(zip(rewards, batch.attempts, strict=True))
    tokens = sum(len(r.completion.token_ids) for _, r in attempts)
    expected = sum(reward * len(r.completion.token_ids) for reward, r in attempts) / tokens
    assert watch.logged[0]["return/mean"] == pytest.approx(expected, rel=1e-4)
    assert watch.logged[0]["total/rollout_tokens"] == tokens


# -- resuming, several processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        (
            "lfm2",
            {
                "critic": "separate",
                "updates_per_rollout": 2,
                "minibatches_per_update": 2,
                "value_lr": 1e-3,
                "scheduler": True,
            },
        ),
        (
            "lfm2",
            {"critic": "adapter", "lora": LORA, "beta": 0.1, "adaptive_kl": ADAPTIVE, "critic_warmup_steps": 3},
        ),
        ("llama", {"target_kl": 0.05, "updates_per_rollout": 3}),
    ],
    ids=["shared", "separate", "adapter", "target_kl"],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_by_bit(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    model_path, options = tiny_model(kind), dict(options)
    if options.pop("scheduler", False):
        options["lr_scheduler"] = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    data = {"prompts_per_step": 5, "group_size": 3}
    run: dict[str, Any] = {"enable_checkpointing": True}
    whole, part = Watch(), Watch()
    steps = options.get("updates_per_rollout", 1) * options.get("minibatches_per_update", 1)
    one = fit(tmp_path / "whole", ppo(model_path, **options), 7 * steps, rollouts(**data), callbacks=[whole])
    fit(tmp_path / "part", ppo(model_path, **options), 4 * steps, rollouts(**data), callbacks=[RunCheckpoint()], **run)
    last = tmp_path / "part/checkpoints/last.ckpt"
    torch.load(last, weights_only=True)
    module = ppo(model_path, **options)
    two = fit(tmp_path / "part", module, 7 * steps, rollouts(**data), ckpt_path=last, callbacks=[part])
    assert same(one, two)
    timed = ("time/", "throughput/", "total/wall_s", "total/cpu_s")
    for name, value in whole.logged[-1].items():
        if not name.startswith(timed):
            assert part.logged[-1][name] == value, name


def test_evaluation_needs_no_critic(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    module = ppo(tiny_model("llama"))
    trainer(tmp_path, 1, limit_val_batches=1).validate(module, datamodule=rollouts())
    assert not hasattr(module, "critic")
    weights = fit(tmp_path, module, 2, callbacks=[RunCheckpoint()], enable_checkpointing=True)
    assert same(weights, fit(tmp_path, ppo(tiny_model("llama")), 2))
    last = str(tmp_path / "checkpoints/last.ckpt")
    run = trainer(tmp_path, 1, limit_test_batches=1)
    run.test(ppo(tiny_model("llama")), datamodule=rollouts(), ckpt_path=last)
    assert "test/accuracy" in run.callback_metrics


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.05},
        {"critic": "adapter", "lora": LORA, "critic_warmup_steps": 2, "updates_per_rollout": 2, "target_kl": 1e-7},
    ],
)
def test_two_processes_train_what_one_does(
    tiny_model: Callable[[str], str], tmp_path: Path, options: dict[str, Any]
) -> None:
    results = []
    for name, devices in (("one", 1), ("two", 2)):
        parallel = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        pl.seed_everything(0, verbose=False)
        module = ppo(tiny_model("lfm2"), **options, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        run = trainer(tmp_path / name, 6, callbacks=[RunCheckpoint()], enable_checkpointing=True, **parallel)
        run.fit(module, datamodule=rollouts(prompts_per_step=5))
        results.append(torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True))
    one, two = results
    assert one["global_step"] == two["global_step"]
    assert one["totals"]["rollout_tokens"] == two["totals"]["rollout_tokens"] > 0
    assert one["totals"]["train_tokens"] == two["totals"]["train_tokens"]
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, atol=2e-4, rtol=1e-3)


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_config_of_grpo_becomes_one_of_ppo_by_its_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "configs/quickstart.yaml").read_text()
    assert text.count("class_path: GRPOModule") == 1
    config = tmp_path / "switched.yaml"
    shared = "beta: 0.1\n    epsilon: 0.1\n    minibatches_per_update: 1\n    mask_truncated: true"
    config.write_text(text.replace("class_path: GRPOModule", "class_path: PPOModule").replace("beta: 0.0", shared))
    overrides = {"warm_start": "null", "model.init_args.policy.init": "random"}
    main(["fit", "--config", str(config), *few(tmp_path / "runs", **overrides)])
    run = only_run(tmp_path / "runs", "switched")
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert "critic.head.weight" in checkpoint["state_dict"]
    exported = AutoModelForCausalLM.from_pretrained(run / "policy")
    assert not any("head.bias" in name for name in exported.state_dict()), "the policy alone is exported"
