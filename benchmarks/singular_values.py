"""The score of LoR2C paths from the r x r core against a dense SVD of B A, at d = 4096, r = 64.

Run: OMP_NUM_THREADS=1 python benchmarks/singular_values.py [--paths 32] [--width 4096] [--rank 64] [--rounds 1]

A dense SVD of this width takes seconds, on some machines half a minute, so it is timed once a round and the default is
one. ``ratio_per_path`` is the dense SVD's time over that of one path's core.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from _harness import Table, arguments, interleaved
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise


def paths_of(given: Any) -> list[Any]:
    """Return LoR2C's paths in a model that is little else, with factors that are not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=given.width,
        intermediate_size=8,
        num_hidden_layers=given.paths,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = get_peft_model(LlamaForCausalLM(config).to(given.device), rankwise.Lor2cConfig(r=given.rank))
    paths = list(rankwise.named_paths(model).values())
    with torch.no_grad():
        for path in paths:
            path.lora_B.normal_()
    return paths


def main() -> None:
    given = arguments(__doc__, paths=32, width=4096, rank=64, rounds=1)
    paths = paths_of(given)
    rankwise.sfs(paths[0])  # the first call of a LAPACK routine sets it up
    dense, cores = f"a dense SVD of {given.width} x {given.width}", f"SFS of {len(paths)} paths by their cores"
    scores: dict[str, float] = {}

    @torch.no_grad()
    def by_dense() -> None:
        sigma = torch.linalg.svdvals(paths[0].lora_B @ paths[0].lora_A)
        scores[dense] = 1 - float(sigma[0] / sigma.sum())

    def by_cores() -> None:
        first, *_ = (rankwise.sfs(path) for path in paths)
        scores[cores] = first

    found = interleaved({dense: by_dense, cores: by_cores}, given.rounds, given.device, warm=0)
    ratio = statistics.median(found[dense]) / statistics.median(found[cores]) * len(paths)
    shown = {name: round(score, 6) for name, score in scores.items()}
    table = Table(__file__, vars(given))
    title = f"SFS of paths {given.width} wide, r={given.rank}, {given.threads} thread(s)"
    table.add(title, found, dense, SFS_of_first=shown, ratio_per_path={cores: round(ratio)})
    table.write()


if __name__ == "__main__":
    main()
