"""How far the log-probs of sampling and of the training pass are apart, and what that depends on.

    python benchmarks/sampler_gap.py --model HuggingFaceTB/SmolLM2-135M-Instruct
    python benchmarks/sampler_gap.py                      # random weights, LFM2-shaped

Every line samples completions in process and computes the log-probs of their tokens again, as a training step does.
The gap is the difference per token in nats, and of a sequence the sum over its tokens. Seconds are of the rollout and
of the pass without gradient: CPU seconds on the CPU, wall time on CUDA.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from meters import machine, now
from shapes import SHAPES, build, smoke
from torch import Tensor

import grpo_lightning.models.policy as policy_code
from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.functional import length_mask
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.models.tokenizer import encode_prompt
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.batch import right_padded, token_rows
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.decoder import DecodingModel
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.tasks import Arithmetic

DECODING = ["direct_decoding", "packed_weights", "early_joins", "shared_beginnings", "shared_prompts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub name or folder; default: random weights of the shape")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few tokens")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    print("python", shlex.join(sys.argv))
    print(machine(device), flush=True)
    print("\n| weights, arithmetic | mean | max | sequence, max | rollout, s | pass, s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model
        if path is None:
            shape = SHAPES[arguments.shape]
            build(smoke(shape) if arguments.smoke else shape, Path(folder))
            path = folder
        size = (2, 8) if arguments.smoke else (arguments.prompts, arguments.tokens)
        lines(partial(load_policy, path, device), partial(measure, *size), device)


def lines(load: Any, measure: Any, device: torch.device) -> None:
    """Print one line per setting; each model is loaded once."""
    autocast = partial(torch.autocast, device.type, torch.bfloat16)
    full = load(dtype="float32")
    print_line("float32", measure(full))
    print_line("float32, `bf16-mixed`", measure(full, autocast))
    del full
    half = load(dtype="bfloat16")
    print_line("bfloat16", measure(half))
    print_line("bfloat16, one row per pass", measure(half, budget=1))
    with float32_head():
        print_line("bfloat16, head in float32 on both sides", measure(half))
    del half
    print_line("bfloat16, decoding and prompts without shortcuts", measure(load(dtype="bfloat16", without=DECODING)))
    adapted = with_noise(load(dtype="bfloat16", lora=LoRAConfig()))
    print_line("bfloat16 with LoRA, merged for rollouts", measure(adapted))


def load_policy(path: str, device: torch.device, **options: Any) -> Policy:
    return Policy(PolicyConfig(path=path, **options)).to(device)


def with_noise(policy: Policy) -> Policy:
    """Give a fresh adapter values with which it does something."""
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.trainable_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += (0.01 * noise).to(parameter.device)
    return policy


def measure(
    prompts: int,
    tokens: int,
    policy: Policy,
    precision: Any = nullcontext,
    budget: int = 8192,
    during_rollout: Any = nullcontext,
) -> tuple[float, ...]:
    texts = [prompt.messages for prompt in Arithmetic(train_size=prompts).prompts("train")]
    requests = [Request(encode_prompt(policy.tokenizer, text), row_seed("gap", row)) for row, text in enumerate(texts)]
    engine = InProcessEngine()
    engine.start(policy, 1024)
    started = now(policy.device)
    with precision(), during_rollout():
        completions = engine.generate(requests, SamplingParams(max_new_tokens=tokens))
    sampled = now(policy.device)
    ids = [completion.token_ids for completion in completions]
    rows = token_rows([request.prompt for request in requests], ids, policy.pad_token_id).to(policy.device)
    sampler_NT = right_padded([completion.logprobs for completion in completions])
    logprobs_NT = torch.zeros_like(sampler_NT)
    numbers = torch.arange(len(ids), device=policy.device)
    with torch.no_grad(), precision():
        for part in microbatches(rows, numbers, budget, policy.shares_prompts, policy.pass_overhead):
            part_NT = policy.logprobs(part.tokens)[0].cpu()
            logprobs_NT[part.rows.cpu(), : part_NT.shape[1]] = part_NT
    ended = now(policy.device)
    mask_NT = length_mask(rows.completion_lengths_N.cpu(), sampler_NT.shape[1])
    gap_NT = torch.where(mask_NT, logprobs_NT - sampler_NT, 0)
    token = gap_NT[mask_NT].abs()
    return token.mean().item(), token.max().item(), gap_NT.sum(1).abs().max().item(), sampled - started, ended - sampled


@contextmanager
def float32_head() -> Iterator[None]:
    """Inside, the output head multiplies in float32, in the rollout and in the pass. Heads without a bias only."""
    logprobs, logits = policy_code.token_logprobs, DecodingModel.logits

    def off(device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, enabled=False)

    def full_logprobs(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, **options: Any) -> Any:
        with off(hidden_MD.device):
            return logprobs(hidden_MD.float(), weight_VD.float(), targets_M, **options)

    def full_logits(self: DecodingModel, hidden_RD: Tensor) -> Tensor:
        if not hasattr(self, "full_head"):
            self.full_head = self.lm.get_output_embeddings().weight.detach().float()  # type: ignore[attr-defined]
        with off(hidden_RD.device):
            return hidden_RD.float() @ self.full_head.T  # type: ignore[attr-defined, no-any-return]

    policy_code.token_logprobs, DecodingModel.logits = full_logprobs, full_logits  # type: ignore[method-assign]
    try:
        yield
    finally:
        policy_code.token_logprobs, DecodingModel.logits = logprobs, logits  # type: ignore[method-assign]


def print_line(name: str, measured: tuple[float, ...]) -> None:
    mean, largest, sequence, rollout, forward = measured
    print(f"| {name} | {mean:.2g} | {largest:.2g} | {sequence:.2g} | {rollout:.1f} | {forward:.1f} |", flush=True)


if __name__ == "__main__":
    main()
