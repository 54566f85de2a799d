"""A plain LoRA for servers (vLLM, TGI and others read one rank and no patterns), and what such a server computes.

The second process imports neither rankwise nor PEFT: it reads the two files as a server does, adds
``alpha / r * B A`` to each named weight, and its logits are the trained model's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from _tiny import language_model
from peft import get_peft_model

import rankwise

IDS = [[2, 9, 14, 30, 3]]
SERVER = """
import json, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
base, adapter, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config = json.load(open(adapter + "/adapter_config.json"))
assert config["peft_type"] == "LORA" and not config["rank_pattern"] and not config["alpha_pattern"]
tensors = load_file(adapter + "/adapter_model.safetensors")
model = AutoModelForCausalLM.from_pretrained(base).eval()
weights = dict(model.named_parameters())
with torch.no_grad():
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            place = name.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[place] += config["lora_alpha"] / config["r"] * b @ a
    logits = model(torch.tensor(ids)).logits
assert not any(name.split(".")[0] in ("rankwise", "peft") for name in sys.modules)
print(json.dumps(logits[0, -1].tolist()))
"""


def main() -> None:
    config = rankwise.HeteroLoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], mode="dynamic", budget=0.5, search_every=2
    )
    with tempfile.TemporaryDirectory() as place:
        base, adapter = Path(place) / "base", Path(place) / "plain-lora"
        language_model().save_pretrained(base)
        model = get_peft_model(language_model(), config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-1)
        ids = torch.tensor(IDS)
        model.train()
        for _ in range(5):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        rankwise.export_lora(model, adapter)
        with torch.no_grad():
            expected = model.eval()(ids).logits[0, -1]
        command = [sys.executable, "-c", SERVER, str(base), str(adapter), json.dumps(IDS)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    served = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(served, expected, rtol=1e-4, atol=1e-5)
    print("a server without rankwise computes the same logits")


if __name__ == "__main__":
    main()
