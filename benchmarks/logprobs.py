"""Memory and time of log-probs with their gradients: chunked (`token_logprobs`) versus log_softmax and gather.

    python benchmarks/logprobs.py --frozen-head

Every measurement is one forward and backward pass in a fresh process; the two variants alternate. Memory is the peak
above that of the inputs: resident memory on the CPU, allocated memory on CUDA. Time is CPU seconds on the CPU and wall
time on CUDA. The chunked variant returns the entropy too; the naive one does not.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys

from meters import Peak, machine, now, spread

VARIANTS = ("naive", "chunked")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8, help="rollouts")
    parser.add_argument("--t", type=int, default=512, help="tokens per rollout")
    parser.add_argument("--vocab", type=int, default=65_536)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frozen-head", action="store_true", help="as with LoRA: no gradient for the head")
    parser.add_argument("--chunk-size", type=int, default=None, help="rows per chunk (default: 64 MiB of logits)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Measure one forward and backward pass of ``args.worker`` in this process."""
    # The parent must not import torch: on Linux, children inherit their parent's peak of resident memory.
    import torch

    from grpo_lightning.functional import token_logprobs

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, dtype, rows = torch.device(args.device), getattr(torch, args.dtype), args.n * args.t
    hidden_MD = torch.randn(rows, args.hidden, device=device, dtype=dtype).requires_grad_()
    weight_VD = torch.randn(args.vocab, args.hidden, device=device, dtype=dtype).mul_(args.hidden**-0.5)
    weight_VD.requires_grad_(not args.frozen_head)
    targets_M = torch.randint(args.vocab, (rows,), device=device)

    def forward_backward(rows: int) -> torch.Tensor:
        if args.worker == "chunked":
            logprobs_M = token_logprobs(
                hidden_MD[:rows], weight_VD, targets_M[:rows], chunk_size=args.chunk_size
            ).logprobs_M
        else:
            logits_MV = hidden_MD[:rows] @ weight_VD.T
            logprobs_MV = torch.log_softmax(logits_MV, dim=1, dtype=torch.float32)
            logprobs_M = logprobs_MV.gather(1, targets_M[:rows, None]).squeeze(1)
        (-logprobs_M.mean()).backward()
        return logprobs_M.detach()

    forward_backward(rows=8)  # start-up costs of the libraries
    hidden_MD.grad = weight_VD.grad = None
    peak = Peak(device, measuring=True)
    peak.reset()
    held, start = peak.held(), now(device)
    logprobs_M = forward_backward(rows)
    seconds = now(device) - start
    assert hidden_MD.grad is not None
    return {
        "seconds": seconds,
        "mib": peak.peak() - held,
        "logprob": logprobs_M.double().mean().item(),
        "grad_norm": hidden_MD.grad.double().norm().item(),
        "machine": machine(device),
    }


def main() -> None:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    results: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.repeats):
        for variant in VARIANTS:
            command = [sys.executable, *sys.argv, "--worker", variant]
            results[variant].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    naive, chunked = results["naive"], results["chunked"]
    for quantity in ("logprob", "grad_norm"):
        expected, got = naive[0][quantity], chunked[0][quantity]
        assert abs(got - expected) < 1e-2 * abs(expected), f"the variants disagree: {quantity} {expected} and {got}"

    print("command ", shlex.join(["python", *sys.argv]))
    print("machine ", naive[0]["machine"])
    print(
        f"shapes   M = {args.n} x {args.t} tokens, V = {args.vocab}, D = {args.hidden}, {args.dtype}, "
        f"{'frozen' if args.frozen_head else 'trained'} head, {args.repeats} repeats: median (min to max)"
    )
    for variant in VARIANTS:
        seconds = f"{spread([run['seconds'] for run in results[variant]])} s"
        mib = f"{spread([run['mib'] for run in results[variant]])} MiB above the inputs"
        print(f"{variant:8} {seconds}  {mib}")
    for name, key in (("time", "seconds"), ("memory", "mib")):
        ratios = [before[key] / after[key] for before, after in zip(naive, chunked, strict=True)]
        print(f"naive / chunked, {name:6} {spread(ratios)} x")


if __name__ == "__main__":
    main()
