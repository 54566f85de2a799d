"""sentence-transformers: ``add_adapter`` takes any PEFT config; its trainer is transformers', so the search runs.

Needs ``pip install sentence-transformers``, which rankwise does not install (TRL or another package may have).
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch
from _tiny import SHAPE, report, sentence, tokenizer
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertModel

import rankwise


def main() -> None:
    draw = random.Random(0)
    texts = [sentence(draw) for _ in range(32)]
    config = rankwise.HeteroLoraConfig(
        task_type="FEATURE_EXTRACTION", r=4, lora_alpha=8, target_modules=["query", "value"], mode="dynamic", budget=0.5, search_every=3
    )
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(tokenizer()), **SHAPE)).save_pretrained(Path(place) / "base")
        tokenizer().save_pretrained(Path(place) / "base")
        body = Transformer(str(Path(place) / "base"))
        model = SentenceTransformer(modules=[body, Pooling(SHAPE["hidden_size"])], device="cpu")
        model.add_adapter(config)
        arguments = SentenceTransformerTrainingArguments(
            place, max_steps=4, per_device_train_batch_size=8, report_to=[], use_cpu=True, save_strategy="no"
        )
        rows = Dataset.from_dict({"anchor": texts, "positive": [sentence(draw) for _ in texts]})
        SentenceTransformerTrainer(
            model, arguments, train_dataset=rows, loss=MultipleNegativesRankingLoss(model)
        ).train()
    report(model)


if __name__ == "__main__":
    main()
