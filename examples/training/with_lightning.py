"""Lightning: the module owns a PEFT model; needs ``pip install lightning``, which rankwise does not install."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from _tiny import classifier, labelled, report
from peft import get_peft_model
from torch.utils.data import DataLoader

import rankwise


class Classifier(lightning.LightningModule):
    """A PEFT model that Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
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
        self.model = get_peft_model(classifier(), config)

    def training_step(self, batch: dict[str, Any], _: int) -> Any:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


def main() -> None:
    module = Classifier()
    module.model.train()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, **quiet)
    trainer.fit(module, DataLoader(labelled().with_format("torch"), batch_size=8))
    report(module.model)


if __name__ == "__main__":
    main()
