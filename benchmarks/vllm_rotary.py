"""vLLM's rotary kernel for CPUs turns queries of the shape that its LFM2 gives them by wrong angles.

In the environment of vLLM: ``python benchmarks/vllm_rotary.py``. docs/scaling.md has what it prints, and what helps.

Queries of shape ``[tokens, heads * head_size]`` are rotated correctly. LFM2 has ``[tokens, heads, head_size]``, which
the comment in the kernel (``csrc/cpu/pos_encoding.cpp``) allows: of these it rotates the first ``tokens`` heads in
memory, one by the position of each token, and the others not at all.
"""

import torch
import vllm
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

TOKENS, HEADS, HEAD_SIZE, BASE = 5, 4, 32, 1e6


def main() -> None:
    current_platform.import_kernels()
    torch.manual_seed(0)
    angles_PD = torch.arange(64)[:, None] / BASE ** (torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    table_PD = torch.cat([angles_PD.cos(), angles_PD.sin()], dim=-1)
    # As in a server, more positions than tokens are in memory.
    positions_T = torch.arange(64)[:TOKENS]
    query_THD = torch.randn(TOKENS, HEADS, HEAD_SIZE)
    first_THD, second_THD = query_THD.chunk(2, dim=-1)
    cos_T1D, sin_T1D = angles_PD[positions_T, None].cos(), angles_PD[positions_T, None].sin()
    expected_THD = torch.cat(
        [first_THD * cos_T1D - second_THD * sin_T1D, second_THD * cos_T1D + first_THD * sin_T1D], dim=-1
    )
    print(f"vLLM {vllm.__version__} on {current_platform.device_name}: largest error of a rotated query")
    for shape in [(TOKENS, HEADS * HEAD_SIZE), (TOKENS, HEADS, HEAD_SIZE)]:
        rotated = query_THD.clone().view(shape)
        ops.rotary_embedding(positions_T, rotated, rotated.clone(), HEAD_SIZE, table_PD, True)
        print(f"  query of shape {shape}: {(rotated.view_as(expected_THD) - expected_THD).abs().max():.7f}")


if __name__ == "__main__":
    main()
