"""The config that ``grpo init`` writes."""

from __future__ import annotations

import json

from grpo_lightning.commands.init.kinds import Kind

_MODEL = {
    "grpo": """\
  class_path: GRPOModule
  init_args:
{common}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {{lr: 1.0e-4, weight_decay: 0.0, fused: true}}
    beta: 0.0                 # weight of the KL to the untrained model; 0 needs no reference
    epsilon: 0.2              # clip of the ratio
    updates_per_rollout: 1    # 1 is exactly on-policy
    max_tokens_per_microbatch: 4096   # limits the memory of the update; does not change its result
    max_grad_norm: 1.0
""",
    "ppo": """\
  class_path: PPOModule
  init_args:
{common}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {{lr: 1.0e-4, weight_decay: 0.0, fused: true}}
    critic: adapter           # a second adapter on the same base; or: shared, separate (a second model)
    value_lr: 1.0e-4          # of that adapter and the value head
    beta: 0.0                 # weight of the KL to the untrained model; 0 needs no reference
    epsilon: 0.2              # clip of the ratio
    max_tokens_per_microbatch: 4096   # limits the memory of the update; does not change its result
    max_grad_norm: 1.0
""",
    "sft": """\
  class_path: SFTModule       # learns the worked solutions; the verifier measures the validation accuracy
  init_args:
{common}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {{lr: 2.0e-4, weight_decay: 0.0, fused: true}}
    max_tokens_per_microbatch: 4096   # limits the memory of the update; does not change its result
    max_grad_norm: 1.0
""",
}
_COMMON = """\
    policy:
      path: {model}   # a name on the hub, or a folder on disk
      lora: {{r: 16, alpha: 32, target_modules: all-linear}}   # omit it to train all weights
    verifiers:
      - class_path: verifier.MyVerifier   # in verifier.py: rewards 1.0 if correct, 0.5 if well-formed, else 0.0
        init_args: {{longest: {longest}}}"""
_STEP = {
    "grpo": "  prompts_per_step: 4\n  group_size: 8               # completions per prompt, compared with each other\n",
    "ppo": "  prompts_per_step: 8\n  group_size: 4               # completions per prompt\n",
    "sft": "  prompts_per_step: 16        # demonstrations per step\n",
}
_TEXT = """\
# {name}: {algorithm} of {model}.
#
#   grpo check {name}.yaml             # is the verifier right about gold answers, and about wrong ones?
#   grpo fit {name}.yaml               # any key can be changed: --data.group_size 16 --trainer.max_steps 500
#   grpo samples runs/{name}/RUN --open
#
# grpo plan {name}.yaml says whether it fits into your memory; grpo fit --help lists the keys.

seed_everything: 1

trainer:
  accelerator: auto
  max_steps: 100              # optimizer steps
  val_check_interval: 20      # steps between validations

model:
{module}
data:
  task:
{task}{environment}{step}{sampling}
  val_sampling: {{temperature: 0.0}}   # greedy
"""
_SAMPLING = "  sampling: {{temperature: 0.7, max_new_tokens: {}}}   # above 135 M parameters, 1.0 is usual"
ALGORITHMS = tuple(_MODEL)


def config_text(name: str, kind: Kind, model: str, algorithm: str) -> str:
    """The text of ``NAME.yaml``."""
    common = _COMMON.format(model=json.dumps(model) if " " in model else model, longest=kind.longest)
    return _TEXT.format(
        name=name, algorithm=algorithm.upper(), model=model, module=_MODEL[algorithm].format(common=common),
        task=kind.task, environment=kind.environment, step=_STEP[algorithm],
        sampling=_SAMPLING.format(kind.max_new_tokens),
    )  # fmt: skip
