"""A plain loop: with ``scoring="online"`` nothing is called; the method hears the optimizer's steps."""

from __future__ import annotations

import torch
from _tiny import classifier, labelled, report
from peft import get_peft_model
from torch.utils.data import DataLoader

import rankwise


def main() -> None:
    config = rankwise.HeteroLoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        target_modules=["query", "value"],
        budget=0.5,
        search_every=4,
        score_batches=2,
    )
    model = get_peft_model(classifier(), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = labelled().with_format("torch")
    model.train()
    for batch in DataLoader(rows, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0)):  # type: ignore[arg-type]
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report(model)


if __name__ == "__main__":
    main()
