"""A plain loop: one call chooses the ranks, before the optimizer is made."""

from __future__ import annotations

import torch
from _tiny import classifier, labelled, report
from peft import get_peft_model
from torch.utils.data import DataLoader

import rankwise


def main() -> None:
    model = get_peft_model(classifier(), rankwise.HeteroLoraConfig(task_type="SEQ_CLS", budget=600))
    rows = labelled().with_format("torch")
    batches = DataLoader(rows, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    rankwise.Allocator(model, batches=batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report(model)


if __name__ == "__main__":
    main()
