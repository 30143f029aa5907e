"""One training step of distillation against formulas written out, and each option against its absence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpo_lightning.algorithms import DistillationModule, FeedbackContext, TeacherContext
from grpo_lightning.callbacks import ReferenceSync
from grpo_lightning.constraints import Regex
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig, TeacherConfig
from grpo_lightning.rollout import Experience, RefinementConfig, SamplingParams
from grpo_lightning.types import Sample, Verdict
from tests.tiny import save_tiny_model
from tests.toy import LetterVerifier, Watch, adam, fit, grpo, rollouts, same, sgd, trainer

NO_CLIP: dict[str, Any] = {"max_grad_norm": None, "optimizer": sgd}


class Hinting(LetterVerifier):
    """Says how far off a failure is."""

    def verify(self, sample: Sample) -> Verdict:
        verdict = super().verify(sample)
        return replace(verdict, correct=(verdict.score or 0) > 0.42, feedback=f"Only {len(sample.completion)} bytes.")


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model of another shape, with the policy's tokenizer and a longer output head."""
    folder = tmp_path_factory.mktemp("teacher")
    return save_tiny_model(folder, "llama", seed=7, hidden_size=64, head_dim=16, vocab_size=272)


def distillation(path: str, teacher: Any, **options: Any) -> DistillationModule:
    policy = {key: options.pop(key) for key in ("lora", "reference", "without") if key in options}
    is_path = isinstance(teacher, str) and teacher not in ("self", "reference")
    source = TeacherConfig(teacher) if is_path else teacher
    options = {"verifiers": [Hinting()], "optimizer": adam} | options
    return DistillationModule(policy=PolicyConfig(path=path, **policy), teacher=source, **options)


def gradient(
    folder: Path, path: str, teacher: Any, data: dict[str, Any] | None = None, **options: Any
) -> tuple[dict[str, Tensor], Experience, dict[str, float]]:
    """Minus the change of the weights in one step of SGD with learning rate 1, with the step's batch and log."""
    watch = Watch()
    module = distillation(path, teacher, **NO_CLIP | options)
    after = fit(folder, module, 1, rollouts(**data or {}), callbacks=[watch])
    before = {f"policy.model.{name}": p for name, p in AutoModelForCausalLM.from_pretrained(path).named_parameters()}
    return {name: before[name] - tensor for name, tensor in after.items()}, watch.batches[0], watch.logged[0]


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-3)


def distribution(model: Any, context: list[int], completion: list[int]) -> Tensor:
    """``[T, V]``: log-probs of all tokens of the policy's vocabulary at each place of a completion."""
    logits = model(input_ids=torch.tensor([[*context, *completion]])).logits[0, len(context) - 1 : -1, :264]
    return logits.log_softmax(-1)


def expected(batch: Experience, path: str, teacher: Any, contexts: list[list[int] | None], kind: str) -> Any:
    """The gradient of the mean divergence per token and completion, and the mean over all tokens."""
    model, loss, values = AutoModelForCausalLM.from_pretrained(path), torch.zeros(()), []
    for attempt, context in zip(batch.attempts, contexts, strict=True):
        if context is None:
            continue
        ids = attempt.completion.token_ids
        p, q = distribution(model, attempt.context, ids), distribution(teacher, context, ids).detach()
        m = (p.exp() + q.exp()).log() - torch.tensor(2.0).log()
        divergence_T = {
            "reverse_kl": (p.exp() * (p - q)).sum(-1),
            "forward_kl": (q.exp() * (q - p)).sum(-1),
            "jsd": 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1),
        }[kind]
        values += divergence_T.tolist()
        loss = loss + divergence_T.mean() / len(batch)
    loss.backward()
    return {f"policy.model.{name}": p.grad for name, p in model.named_parameters()}, sum(values) / len(values)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_the_gradient_is_that_of_the_divergence(
    tiny_model: Callable[[str], str], teacher_path: str, tmp_path: Path, kind: str
) -> None:
    path = tiny_model("lfm2")
    found, batch, logged = gradient(tmp_path, path, teacher_path, divergence=kind)
    contexts: list[list[int] | None] = [attempt.context for attempt in batch.attempts]
    wanted, mean = expected(batch, path, AutoModelForCausalLM.from_pretrained(teacher_path), contexts, kind)
    close(found, wanted)
    assert logged["policy/teacher_divergence"] == pytest.approx(mean, rel=1e-4)
    assert logged["policy/taught"] == 1
    assert max(tensor.abs().max() for tensor in found.values()) > 1e-3


@pytest.mark.parametrize("options", [{"vocabulary": "sampled"}, {"reward_coef": 0.5}])
def test_the_gradient_does_not_depend_on_the_split(
    tiny_model: Callable[[str], str], tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"context": FeedbackContext(solved_sibling=True), **options}
    whole, _, logged = gradient(tmp_path, tiny_model("lfm2"), "self", max_tokens_per_microbatch=10**5, **options)
    assert 0 < logged["policy/taught"] < 1, "some rows are scored and others not, or nothing is tested"
    for changes in ({"max_tokens_per_microbatch": 100}, {"without": ["shared_prompts"]}):
        close(whole, gradient(tmp_path, tiny_model("lfm2"), "self", **options | changes)[0])


def test_sampled_tokens_are_a_policy_gradient_with_the_log_ratio(
    tiny_model: Callable[[str], str], teacher_path: str, tmp_path: Path
) -> None:
    path = tiny_model("llama")
    found, batch, logged = gradient(tmp_path, path, teacher_path, vocabulary="sampled")
    model, teacher = (AutoModelForCausalLM.from_pretrained(one) for one in (path, teacher_path))
    loss, estimates = torch.zeros(()), []
    for attempt in batch.attempts:
        ids = attempt.completion.token_ids
        logp, logq = (distribution(one, attempt.context, ids)[range(len(ids)), ids] for one in (model, teacher))
        log_w = (logq - logp).detach()
        estimates += (log_w.exp() - 1 - log_w).tolist()
        loss = loss - (log_w * logp).mean() / len(batch)
    loss.backward()
    close(found, {f"policy.model.{name}": p.grad for name, p in model.named_parameters()})
    assert logged["policy/teacher_divergence"] == pytest.approx(sum(estimates) / len(estimates), rel=1e-4)


def test_mixed_with_the_reward_the_gradients_add_up(
    tiny_model: Callable[[str], str], teacher_path: str, tmp_path: Path
) -> None:
    path = tiny_model("llama")
    for vocabulary in ("full", "sampled"):
        alone = gradient(tmp_path, path, teacher_path, vocabulary=vocabulary)[0]
        mixed, _, logged = gradient(tmp_path, path, teacher_path, vocabulary=vocabulary, reward_coef=0.3)
        watch = Watch()
        after = fit(tmp_path, grpo(path, verifiers=[Hinting()], **NO_CLIP), 1, callbacks=[watch])
        start = AutoModelForCausalLM.from_pretrained(path).named_parameters()
        reward = {f"policy.model.{name}": p - after[f"policy.model.{name}"] for name, p in start}
        close(mixed, {name: alone[name] + 0.3 * reward[name] for name in alone})
        assert logged["reward/groups_without_signal"] == watch.logged[0]["reward/groups_without_signal"]


# -- the teacher is the policy ----------------------------------------------------------------------------------------


def test_the_self_teacher_reads_the_feedback_of_failures(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    path = tiny_model("llama")
    context = FeedbackContext(template="{prompt} {hints}")
    found, batch, logged = gradient(tmp_path, path, "self", context=context)
    tokenizer = Policy(PolicyConfig(path=path)).tokenizer
    contexts: list[list[int] | None] = []
    for attempt in batch.attempts:
        text = f"{attempt.prompt.messages[0]['content']} Feedback on an earlier attempt: {attempt.verdict.feedback}"
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        contexts.append(None if attempt.verdict.correct else ids)
    taught = sum(context is not None for context in contexts)
    assert 0 < taught < len(contexts)
    assert logged["policy/taught"] == pytest.approx(taught / len(contexts))
    wanted, mean = expected(batch, path, AutoModelForCausalLM.from_pretrained(path), contexts, "reverse_kl")
    close(found, wanted)
    assert logged["policy/teacher_divergence"] == pytest.approx(mean, rel=1e-4)


def test_a_context_beyond_the_model_s_positions_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prompts and completions fit, and what a self-teacher reads before a completion does not."""
    path = save_tiny_model(tmp_path / "model", "llama", max_position_embeddings=128)
    module = distillation(path, "self", context=FeedbackContext(solved_sibling=True))
    fit(tmp_path / "run", module, 1)
    assert module.longest_row <= 128
    (said,) = [record.message for record in caplog.records if "positions that" in record.message]
    assert said.startswith("what the teacher reads and a completion have up to ")


def test_the_reference_teaches_and_follows_as_an_average(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    """At first it equals the policy and teaches nothing; with a context, it is a self-teacher that follows later."""
    path, context = tiny_model("llama"), FeedbackContext()
    nothing, _, logged = gradient(tmp_path, path, "reference")
    assert logged["policy/teacher_divergence"] == pytest.approx(0, abs=1e-6)
    assert max(tensor.abs().max() for tensor in nothing.values()) < 1e-5
    own, fixed = (fit(tmp_path, distillation(path, form, context=context), 3) for form in ("self", "reference"))
    sync = [ReferenceSync(every_n_steps=1, alpha=0.5)]
    averaged = fit(tmp_path, distillation(path, "reference", context=context), 3, callbacks=sync)
    assert not same(own, fixed)
    assert not same(own, averaged)
    assert not same(fixed, averaged)
    hard = [ReferenceSync(every_n_steps=1, alpha=1.0)]
    close(own, fit(tmp_path, distillation(path, "reference", context=context), 3, callbacks=hard))


def test_no_second_copy_of_the_weights(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    for teacher, context in (("self", FeedbackContext()), ("reference", None)):
        module = distillation(tiny_model("llama"), teacher, context=context, lora=LoRAConfig(r=2))
        fit(tmp_path, module, 1)
        assert list(module.teacher.parameters()) == []


# -- another model ----------------------------------------------------------------------------------------------------


def test_a_teacher_is_neither_trained_nor_saved_and_not_loaded_for_an_evaluation(
    tiny_model: Callable[[str], str], teacher_path: str, tmp_path: Path
) -> None:
    module = distillation(tiny_model("llama"), teacher_path)
    fit(tmp_path, module, 1)
    for name, tensor in AutoModelForCausalLM.from_pretrained(teacher_path).named_parameters():
        assert torch.equal(tensor, module.teacher.lm.get_parameter(name))
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert not any("teacher" in name for name in saved)
    evaluated = distillation(tiny_model("llama"), teacher_path)
    trainer(tmp_path, 1, limit_test_batches=1).test(evaluated, datamodule=rollouts(), verbose=False)
    assert not hasattr(evaluated, "teacher")


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "nf4"}])
def test_a_teacher_in_fewer_bits_is_nearly_the_same_teacher(
    tiny_model: Callable[[str], str], teacher_path: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "quantization" in options:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    module = distillation(tiny_model("llama"), TeacherConfig(teacher_path, **options), **NO_CLIP)
    watch = Watch()
    fit(tmp_path, module, 1, callbacks=[watch])
    exact = gradient(tmp_path, tiny_model("llama"), teacher_path)[2]["policy/teacher_divergence"]
    found = watch.logged[0]["policy/teacher_divergence"]
    assert found != exact
    assert found == pytest.approx(exact, rel=0.3)
    kinds = {parameter.dtype for parameter in module.teacher.parameters()}
    assert {None: torch.bfloat16, "int8": torch.int8, "nf4": torch.uint8}[options.get("quantization")] in kinds


def test_a_quantised_teacher_needs_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch, teacher_path: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("grpo_lightning.models.quantised.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nf4 weights need bitsandbytes: pip install 'grpo-lightning\[quantised\]'"):
        fit(tmp_path, distillation(teacher_path, TeacherConfig(teacher_path, quantization="nf4")), 1)


def test_a_teacher_with_another_tokenizer_is_refused_before_a_model_loads(
    tiny_model: Callable[[str], str], teacher_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(save_tiny_model(tmp_path / "other", "llama"))
    written = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(written))
    monkeypatch.setattr(DistillationModule, "configure_model", lambda self: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=r"model.teacher.path: .* another tokenizer than the policy \('a' is token"):
        fit(tmp_path, distillation(tiny_model("llama"), str(folder)), 1)
    with pytest.raises(ConfigError, match=r"model.teacher.path: there is no folder .*nowhere"):
        fit(tmp_path, distillation(tiny_model("llama"), str(tmp_path / "nowhere")), 1)


# -- options ----------------------------------------------------------------------------------------------------------


def test_an_option_changes_the_first_step(tiny_model: Callable[[str], str], teacher_path: str, tmp_path: Path) -> None:
    path = tiny_model("llama")
    jsd = gradient(tmp_path, path, teacher_path, divergence="jsd")[0]
    assert not same(jsd, gradient(tmp_path, path, teacher_path, divergence="jsd", jsd_beta=0.2)[0])
    mixed = gradient(tmp_path, path, teacher_path, reward_coef=1.0)[0]
    changed = gradient(tmp_path, path, teacher_path, reward_coef=1.0, advantage="none-scaled")[0]
    assert not same(mixed, changed)
    sampled = {"vocabulary": "sampled"}
    few = gradient(tmp_path, path, teacher_path, top_entropy_share=0.2, **sampled)[0]
    assert not same(few, gradient(tmp_path, path, teacher_path, **sampled)[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"teacher": "self"}, "model.context: teacher: self needs one"),
        ({"teacher": "reference", "reference": "none"}, "model.teacher: `reference` needs a reference policy"),
        ({"divergence": "kl"}, "model.divergence: must be one of reverse_kl, forward_kl, jsd"),
        ({"jsd_beta": 1.0}, "model.jsd_beta: must be between 0 and 1"),
        ({"vocabulary": "half"}, "model.vocabulary: must be one of full, sampled"),
        ({"reward_coef": -1.0}, "model.reward_coef: must not be negative"),
        ({"top_entropy_share": 0.2}, "model.top_entropy_share: .* set vocabulary to sampled"),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        distillation("somewhere", **{"teacher": "elsewhere"} | options)


def test_what_cannot_be_distilled_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    path, context = tiny_model("llama"), FeedbackContext()
    data = rollouts(refinement=RefinementConfig(mode="distill"))
    with pytest.raises(ConfigError, match=r"data.refinement.mode: distill .* use in_context with DistillationModule"):
        fit(tmp_path, distillation(path, "self", context=context), 1, data)
    with pytest.raises(ConfigError, match=r"data.group_size: .* at least 2 completions per prompt, not 1"):
        fit(tmp_path, distillation(path, "self", context=context, reward_coef=1.0), 1, rollouts(group_size=1))
    fit(tmp_path, distillation(path, "self", context=context), 1, rollouts(group_size=1))


def test_a_constraint_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    data = rollouts(sampling=SamplingParams(max_new_tokens=8, constraint=Regex("[ae]+")))
    with pytest.raises(
        ConfigError, match=r"data.sampling.constraint: a teacher compares distributions over all tokens"
    ):
        fit(tmp_path, distillation(tiny_model("llama"), "self", context=FeedbackContext()), 1, data)


class Everything(TeacherContext):
    """A context of one's own: one token more."""

    def contexts(self, attempts: Any, tokenizer: Any) -> list[list[int] | None]:
        return [[*attempt.context[:-1], 33, attempt.context[-1]] for attempt in attempts]


def test_a_context_of_ones_own_may_teach_all_rows_and_further_attempts(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    path, data = tiny_model("llama"), {"refinement": RefinementConfig(mode="in_context", budget=4)}
    found, batch, logged = gradient(tmp_path, path, "self", data, context=Everything())
    assert len(batch) > batch.first
    assert logged["policy/taught"] == 1
    contexts = Everything().contexts(batch.attempts, None)
    close(found, expected(batch, path, AutoModelForCausalLM.from_pretrained(path), contexts, "reverse_kl")[0])
