"""accelerate: ``prepare`` wraps model and optimizer; start it with ``accelerate launch`` for several processes."""

from __future__ import annotations

import torch
from _tiny import classifier, labelled, report
from accelerate import Accelerator
from peft import get_peft_model
from torch.utils.data import DataLoader

import rankwise


def main() -> None:
    accelerator = Accelerator(cpu=True)
    config = rankwise.HeteroLoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        target_modules=["query", "value"],
        mode="dynamic",
        budget=0.5,
        search_every=4,
        score_batches=2,
    )
    plain = get_peft_model(classifier(), config)
    rows = DataLoader(labelled().with_format("torch"), batch_size=8)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), rows)
    model.train()
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    report(accelerator.unwrap_model(model))


if __name__ == "__main__":
    main()
