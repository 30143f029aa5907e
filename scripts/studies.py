"""What ``scripts/compare.py`` compares: the methods of each study, and how they differ from the shipped configs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        name: name of the folder of its runs.
        title: name in the report.
        config: name of the config that trains it.
        options: options that override the config's.
        start: the method whose policy it continues from; ``None``: the model of its config.
        samples: whether it generates the completions it learns from, and so is limited by a token budget.
        trains: whether it is trained at all, or only tested.
    """

    name: str
    title: str
    config: str
    options: dict[str, str] = field(default_factory=dict)
    start: str | None = None
    samples: bool = True
    trains: bool = True


@dataclass(frozen=True)
class Study:
    """Methods that are compared on one task.

    Args:
        title: heading of the report.
        methods: those to compare; a method comes after the one that it continues from.
        tokens: budget of generated tokens per run that samples; ``None``: the steps of the configs.
        out: default folder of the report.
        jobs: default number of parallel runs.
        stops: callbacks that end the runs without a budget, by method.
        offline: nothing is downloaded.
    """

    title: str
    methods: tuple[Method, ...]
    tokens: int | None
    out: str
    jobs: int
    stops: dict[str, str] = field(default_factory=dict)
    offline: bool = False


def _early_stopping(options: str) -> str:
    return f"{{class_path: EarlyStopping, init_args: {{monitor: val/accuracy, mode: max, {options}}}}}"


JSON_TEST = {"data.task.init_args.test_size": "200"}
SDPO = {
    "model": "DistillationModule", "model.init_args.teacher": "self",
    "model.init_args.context": "{class_path: FeedbackContext, init_args: {solved_sibling: true}}",
}  # fmt: skip

QUICKSTART = Study(
    "The quickstart task",
    (
        Method("sft", "SFT (warm start)", "quickstart_sft", samples=False),
        Method("sft_converged", "SFT (converged)", "quickstart_sft", {"trainer.max_steps": "3000"}, "sft", False),
        Method("ppo", "PPO", "quickstart_ppo", start="sft"),
        Method("grpo", "GRPO", "quickstart", start="sft"),
        Method(
            "grpo_no_std", "GRPO without the std", "quickstart", {"model.init_args.advantage": "none-scaled"}, "sft"
        ),
        # Two more samples per prompt, as many as refinement may add: does the feedback help, or the second chance?
        Method("grpo_group10", "GRPO, 10 samples per prompt", "quickstart", {"data.group_size": "10"}, "sft"),
        Method(
            "refine_distill", "GRPO + refinement (distill)", "quickstart",
            {"data.refinement": "{mode: distill, budget: 2}"}, "sft",
        ),
        Method(
            "refine_in_context", "GRPO + refinement (in_context)", "quickstart",
            {"data.refinement": "{mode: in_context, budget: 2}"}, "sft",
        ),
    ),
    tokens=1_100_000,  # as many as 200 steps of configs/quickstart.yaml generate
    out="docs/results",
    jobs=2,
    # The warm start stops as in its config, the other when accuracy no longer improves.
    stops={
        "sft": _early_stopping("stopping_threshold: 0.4, patience: 1000"),
        "sft_converged": _early_stopping("patience: 10"),
    },
    offline=True,
)  # fmt: skip

SELF_DISTILLATION = Study(
    "Self-distillation on the quickstart task",
    (
        Method("sft", "SFT (warm start)", "quickstart_sft", samples=False),
        Method("grpo", "GRPO", "quickstart", start="sft"),
        # As many more samples as refinement may add, without any feedback.
        Method("grpo_group10", "GRPO, 10 samples per prompt", "quickstart", {"data.group_size": "10"}, "sft"),
        Method(
            "refine_distill", "GRPO + refinement (distill)", "quickstart",
            {"data.refinement": "{mode: distill, budget: 2}"}, "sft",
        ),
        Method("sdpo", "SDPO", "quickstart_sdpo", start="sft"),
        Method(
            "sdpo_reward", "GRPO + SDPO", "quickstart_sdpo", {"model.init_args.reward_coef": "1.0"}, "sft",
        ),
    ),
    tokens=220_000,  # as many as 40 steps of configs/quickstart.yaml generate
    out="docs/results/sdpo",
    jobs=1,
    stops={"sft": _early_stopping("stopping_threshold: 0.4, patience: 1000")},
    offline=True,
)  # fmt: skip

FOUR_STEPS = {"model.init_args.minibatches_per_update": "4"}
"""Four optimizer steps per rollout. With one, the ratio is 1 and all objectives have the same gradient."""


def _objective(name: str, title: str, options: str) -> Method:
    return Method(name, title, "quickstart", FOUR_STEPS | {"model.init_args.objective": options}, "sft")


def _advantage(name: str, title: str, options: str) -> Method:
    return Method(name, title, "quickstart", {"model.init_args.advantage": options}, "sft")


def _two_rewards(name: str, title: str, advantage: str) -> Method:
    """The answer, and whether the completion is short, which the longest solutions are not."""
    verifier = (
        "{class_path: WeightedVerifier, init_args: {required: [answer], weights: {answer: 1.0, short: 0.5}, "
        "parts: {answer: {class_path: MathVerifier}, "
        "short: {class_path: FormatVerifier, init_args: {pattern: '(?s).{1,25}'}}}}}"
    )
    options = {"model.init_args.verifiers": f"[{verifier}]", "model.init_args.advantage": advantage}
    return Method(name, title, "quickstart", options, "sft")


OBJECTIVES = Study(
    "Objectives, advantages and entropy on the quickstart task",
    (
        Method("sft", "SFT (warm start)", "quickstart_sft", samples=False),
        Method("grpo", "GRPO", "quickstart", start="sft"),
        Method("clip", "Clip, 4 steps per rollout", "quickstart", FOUR_STEPS, "sft"),
        _objective("cispo", "CISPO", "{class_path: CISPO, init_args: {epsilon_high: 5.0}}"),
        _objective("gspo", "GSPO", "{class_path: GSPO, init_args: {epsilon: 3.0e-4, epsilon_high: 4.0e-4}}"),
        _objective("sapo", "SAPO", "{class_path: SAPO, init_args: {tau_pos: 1.0, tau_neg: 1.05}}"),
        _objective("gmpo", "GMPO", "{class_path: GMPO, init_args: {epsilon: 0.4}}"),
        _objective("dppo_tv", "DPPO (TV)", "{class_path: DPPO, init_args: {divergence: tv, threshold: 0.15}}"),
        _objective("dppo_kl", "DPPO (KL)", "{class_path: DPPO, init_args: {divergence: kl, threshold: 0.05}}"),
        _advantage("unscaled", "Unscaled", "none-scaled"),
        _advantage("batch_std", "BatchStd", "batch-std"),
        _advantage("leave_one_out", "LeaveOneOut", "leave_one_out"),
        _advantage("max_rl", "MaxRL", "{class_path: MaxRL, init_args: {success: 1.0}}"),
        _advantage("pass_at_2", "PassAtK with k of 2", "{class_path: PassAtK, init_args: {k: 2}}"),
        _two_rewards("two_rewards", "GroupStd of two rewards", "group"),
        _two_rewards(
            "gdpo", "GDPO of two rewards", "{class_path: GDPO, init_args: {weights: {answer: 1.0, short: 0.5}}}"
        ),
        Method(
            "entropy_bonus", "ScheduledEntropy", "quickstart",
            {"model.init_args.entropy_bonus": "{class_path: ScheduledEntropy, init_args: {coef: 0.01}}"}, "sft",
        ),
        Method(
            "entropy_target", "TargetEntropy", "quickstart",
            {"model.init_args.entropy_bonus": "{class_path: TargetEntropy, init_args: {target: 0.2, delta: 1.0e-3}}"},
            "sft",
        ),
        Method(
            "top_entropy", "top_entropy_share: 0.2", "quickstart", {"model.init_args.top_entropy_share": "0.2"}, "sft",
        ),
    ),
    tokens=SELF_DISTILLATION.tokens,
    out="docs/results/objectives",
    jobs=1,
    stops=SELF_DISTILLATION.stops,
    offline=True,
)  # fmt: skip

SMOLLM2_JSON = Study(
    "Self-distillation of SmolLM2-135M on the JSON task",
    (
        Method("untouched", "untouched model", "smollm2_json", JSON_TEST, trains=False),
        Method("grpo", "GRPO", "smollm2_json", JSON_TEST),
        # As many more samples as refinement may add, without any feedback.
        Method("grpo_group8", "GRPO, 8 samples per prompt", "smollm2_json", JSON_TEST | {"data.group_size": "8"}),
        Method(
            "refine_distill", "GRPO + refinement (distill)", "smollm2_json",
            JSON_TEST | {"data.refinement": "{mode: distill, budget: 2}"},
        ),
        Method("sdpo", "SDPO", "smollm2_json", JSON_TEST | SDPO),
    ),
    tokens=18_000,  # about as many as 32 steps of configs/smollm2_json.yaml generate
    out="docs/results/sdpo_json",
    jobs=1,
)  # fmt: skip

LFM_GSM8K = Study(
    "GSM8K",
    (
        Method("untouched", "untouched model", "lfm_gsm8k", trains=False),
        Method("sft", "SFT", "lfm_gsm8k_sft", samples=False),
        Method("ppo", "PPO", "lfm_gsm8k_ppo"),
        Method("grpo", "GRPO", "lfm_gsm8k"),
        Method(
            "refine_distill", "GRPO + refinement (distill)", "lfm_gsm8k",
            {"data.refinement": "{mode: distill, budget: 2}"},
        ),
        # SFT exports an adapter, whose training continues.
        Method("sft_grpo", "SFT, then GRPO", "lfm_gsm8k", {"model.init_args.policy.lora": "null"}, start="sft"),
    ),
    tokens=None,
    out="report",
    jobs=1,
)  # fmt: skip

STUDIES = {
    "quickstart": QUICKSTART,
    "self_distillation": SELF_DISTILLATION,
    "objectives": OBJECTIVES,
    "smollm2_json": SMOLLM2_JSON,
    "lfm_gsm8k": LFM_GSM8K,
}

SMOKE = {
    "trainer.max_steps": "2", "trainer.val_check_interval": "1", "trainer.limit_val_batches": "1",
    "data.prompts_per_step": "2", "data.val_batch_size": "4", "data.task.init_args.test_size": "8",
}  # fmt: skip
