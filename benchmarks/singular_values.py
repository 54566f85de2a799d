"""The score of LoR2C paths from the r x r core against a dense SVD of B A, at d = 4096, r = 64.

Run: python benchmarks/singular_values.py [--paths 32] [--width 4096] [--rank 64]
Prints the time of one dense SVD, of all the cores, and the ratio per path.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise


def main() -> None:
    """Time both ways on the same paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=arguments.width,
        intermediate_size=8,
        num_hidden_layers=arguments.paths,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = get_peft_model(LlamaForCausalLM(config), rankwise.Lor2cConfig(r=arguments.rank))
    paths = list(rankwise.named_paths(model).values())
    with torch.no_grad():
        for path in paths:
            path.lora_B.normal_()
    rounds = []
    rankwise.sfs(paths[0])  # the first call of a LAPACK routine sets it up
    for _ in range(5):
        began = time.perf_counter()
        scores = [rankwise.sfs(path) for path in paths]
        rounds.append((time.perf_counter() - began) / len(paths))
    core = statistics.median(rounds)
    began = time.perf_counter()
    sigma = torch.linalg.svdvals((paths[0].lora_B @ paths[0].lora_A).detach())
    dense = time.perf_counter() - began
    print(f"one dense SVD of {arguments.width} x {arguments.width}: {dense:.2f} s")
    print(f"{len(paths)} cores of {arguments.rank} x {arguments.rank}: {core * len(paths):.3f} s")
    print(f"SFS of the first path: dense {1 - float(sigma[0] / sigma.sum()):.6f}, core {scores[0]:.6f}")
    print(f"ratio per path: {dense / core:.0f}")


if __name__ == "__main__":
    main()
