"""Time and memory of an optimizer step: one prompt per row, prompts shared within groups, layers compiled.

    python benchmarks/update.py --prompt-length 1000
    python benchmarks/update.py --variants shared compiled --shape 135m --prompts 2 --group-size 4 --prompt-length 60

The model has random weights and the given shape. Every measurement is one step (log-probs with their gradients in
micro-batches, and AdamW) in a separate process, after a small step to warm up; the variants alternate. ``plain`` runs
every row with its own prompt; ``shared`` is the default, which shares prompts where that is cheaper; ``compiled`` is
the default with ``policy.compile``. Memory is the peak above the loaded model with its optimizer: resident memory on
the CPU, allocated memory on CUDA. Time is CPU seconds on the CPU and wall time on CUDA; "ready after" is the wall time
of loading and of the step before, with all compilation, whose results later repeats find on the disk. The variants must
agree on the loss and the norm of the gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Any

from meters import Peak, machine, now, spread

VARIANTS = ("plain", "shared", "compiled")
SHAPES: dict[str, dict[str, Any]] = {
    # 2.5 M parameters: Llama-shaped, a vocabulary of characters.
    "tiny": {"kind": "llama", "vocab": 160, "hidden": 256, "layers": 3, "heads": 4, "kv": 2, "mlp": 768},
    # 42 M parameters, of which the head is 25 M.
    "small": {"kind": "lfm2", "vocab": 65_536, "hidden": 384, "layers": 8, "heads": 6, "kv": 2, "mlp": 1024},
    # The same with a small vocabulary.
    "body": {"kind": "lfm2", "vocab": 160, "hidden": 384, "layers": 8, "heads": 6, "kv": 2, "mlp": 1024},
    # SmolLM2-135M.
    "135m": {"kind": "llama", "vocab": 49_152, "hidden": 576, "layers": 30, "heads": 9, "kv": 3, "mlp": 1536},
    # LiquidAI/LFM2.5-1.2B.
    "1.2b": {"kind": "lfm2", "vocab": 65_536, "hidden": 2048, "layers": 16, "heads": 32, "kv": 8, "mlp": 8192},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "shared"])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--prompt-length", type=int, default=1000)
    parser.add_argument("--prompt-spread", type=float, default=0.0, help="prompts are up to this fraction shorter")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--completion-length", type=int, default=128, help="maximum tokens per completion")
    parser.add_argument("--mean-length", type=float, default=None, help="sample geometric lengths with this mean")
    parser.add_argument("--max-tokens", type=int, default=8192, help="max_tokens_per_microbatch")
    parser.add_argument("--lora", type=int, default=0, help="rank of an adapter on all linear layers; 0: train all")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the weights")
    parser.add_argument("--autocast", action="store_true", help="as with trainer.precision=bf16-mixed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print a profile of the shared variant")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def save_model(folder: str, shape: dict[str, Any]) -> None:
    """Save the config of the architecture and a placeholder tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import Lfm2Config, LlamaConfig, PreTrainedTokenizerFast

    layers = shape["layers"]
    common = {
        "vocab_size": shape["vocab"], "hidden_size": shape["hidden"], "intermediate_size": shape["mlp"],
        "num_hidden_layers": layers, "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv"],
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    }  # fmt: skip
    if shape["kind"] == "llama":
        config: Any = LlamaConfig(architectures=["LlamaForCausalLM"], **common)
    else:
        types = ["full_attention" if layer % 8 in (2, 5, 7) else "conv" for layer in range(layers)]
        config = Lfm2Config(
            architectures=["Lfm2ForCausalLM"], layer_types=types, block_auto_adjust_ff_dim=False, **common
        )
    config.save_pretrained(folder)
    vocabulary = {f"<{index}>": index for index in range(8)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<3>")), pad_token="<0>", eos_token="<2>"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}<2>{% endfor %}"
    tokenizer.save_pretrained(folder)


def make_rows(args: argparse.Namespace) -> tuple[list[list[int]], list[list[int]]]:
    """Make random prompts and completions, one of each per row."""
    import torch

    generator = torch.Generator().manual_seed(0)
    vocab, prompts, completions = SHAPES[args.shape]["vocab"], [], []

    def sequence(length: int) -> list[int]:
        return torch.randint(8, vocab, (length,), generator=generator).tolist()

    for _ in range(args.prompts):
        fraction = 1 - args.prompt_spread * float(torch.rand((), generator=generator))
        prompt = sequence(max(1, round(args.prompt_length * fraction)))
        for _ in range(args.group_size):
            length = args.completion_length
            if args.mean_length is not None:
                sampled = torch.empty(()).geometric_(1 / args.mean_length, generator=generator)
                length = min(length, int(sampled))
            prompts.append(prompt)
            completions.append(sequence(length))
    return prompts, completions


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one optimizer step of ``args.worker`` in this process."""
    # The parent must not import torch: on Linux, children inherit their parent's peak of resident memory.
    import torch
    import transformers

    from grpo_lightning.algorithms.microbatch import microbatches
    from grpo_lightning.functional import adding_in_place
    from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
    from grpo_lightning.rollout.batch import token_rows

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, SHAPES[args.shape])
        lora = LoRAConfig(r=args.lora) if args.lora else None
        config = PolicyConfig(
            path=folder, init="random", dtype=args.dtype, lora=lora, compile=args.worker == "compiled"
        )
        policy = Policy(config).to(device)
    parameters = policy.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    prompts, completions = make_rows(args)
    tokens = token_rows(prompts, completions, 0).to(device)
    total = sum(map(len, completions))

    def step(rows: torch.Tensor) -> dict[str, float]:
        split = microbatches(tokens, rows, args.max_tokens, args.worker != "plain", policy.pass_overhead)
        for parameter in parameters:
            parameter.grad = None
        loss = torch.zeros((), device=device)
        for microbatch in split:
            with torch.autocast(device.type, torch.bfloat16, enabled=args.autocast):
                logprobs_NT, _ = policy.logprobs(microbatch.tokens)
            share = -logprobs_NT.sum() / total
            with adding_in_place():  # as a training step does
                share.backward()
            loss += share.detach()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return {
            "loss": float(loss),
            "grad_norm": float(norm),
            "microbatches": len(split),
            "tokens": sum(microbatch.padded_tokens for microbatch in split),
        }

    whole = device.type == "cuda" or "compiled" in args.variants
    step(torch.arange(len(tokens) if whole else min(2, len(tokens)), device=device))
    ready = time.monotonic() - began
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(0)
    peak = Peak(device, measuring=True)
    peak.reset()
    held, start = peak.held(), now(device)
    if args.profile:
        from torch.profiler import profile

        with profile() as profiler:
            result = step(torch.arange(len(tokens), device=device))
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=sys.stderr)
    else:
        result = step(torch.arange(len(tokens), device=device))
    seconds = now(device) - start
    return result | {
        "seconds": seconds,
        "mib": peak.peak() - held,
        "ready": ready,
        "compiled": next(line for line in policy.shortcuts.lines() if "compiled_layers" in line),
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "completion_tokens": total,
        "machine": machine(device),
    }


def main() -> None:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"}
    if args.profile:
        command = [sys.executable, *sys.argv, "--worker", "shared"]
        subprocess.run(command, check=True, env=environment)
        return
    results: dict[str, list[dict[str, Any]]] = {variant: [] for variant in args.variants}
    for _ in range(args.repeats):
        for variant in args.variants:
            command = [sys.executable, *sys.argv, "--worker", variant]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            results[variant].append(json.loads(done.stdout))
    first_name, *others = args.variants
    first = results[first_name][0]
    tolerance = 1e-4 if args.dtype == "float32" and not args.autocast else 5e-2
    for quantity in ("loss", "grad_norm"):
        for other in others:
            expected, got = first[quantity], results[other][0][quantity]
            assert abs(got - expected) < tolerance * abs(expected), (
                f"the variants disagree: {quantity} {expected} {got}"
            )

    print("command ", shlex.join(["python", *sys.argv]))
    print("machine ", first["machine"])
    print(
        f"shapes   {args.shape}, {first['parameters'] / 1e6:.1f} M parameters, {args.prompts} x {args.group_size} "
        f"rollouts, prompts of {args.prompt_length} tokens, {first['completion_tokens']} completion tokens, "
        f"{args.repeats} repeats: median (min to max)"
    )
    for variant, runs in results.items():
        seconds = f"{spread([run['seconds'] for run in runs])} s"
        mib = f"{spread([run['mib'] for run in runs])} MiB above the model"
        ready = ", ".join(f"{run['ready']:.0f}" for run in runs)
        cut = f"{runs[0]['microbatches']} micro-batches, {runs[0]['tokens']} tokens"
        print(f"{variant:8} {seconds}  {mib}  {cut}  ready after {ready} s")
    if "compiled" in results:
        print(results["compiled"][0]["compiled"])
    for other in others:
        for name, key in (("time", "seconds"), ("memory", "mib")):
            pairs = zip(results[first_name], results[other], strict=True)
            print(f"{first_name} / {other}, {name:6} {spread([before[key] / after[key] for before, after in pairs])} x")


if __name__ == "__main__":
    main()
