"""The dev split and smaller samples: drawn by a seed of their own, the global generators are not touched."""

from __future__ import annotations

from collections import Counter

from datasets import Dataset
from sklearn.model_selection import train_test_split

from rankwise.tasks.labels import LABELS


def carve_dev(
    train: Dataset, fraction: float, *, at_most: int, seed: int, stratify: bool, split: str = "dev"
) -> tuple[Dataset, Dataset | None]:
    """Set a part of ``train`` apart; both parts keep the order of the rows.

    ``size = min(floor(fraction * rows), at_most)``, and with ``stratify`` no fewer than there are classes.

    Args:
        train: The rows.
        fraction: The share to set apart; 0 for none.
        at_most: The most rows to set apart.
        seed: Of the draw.
        split: What it is called, for messages.
        stratify: Keep the classes (column ``labels``) in the proportion they have in ``train``.

    Raises:
        ValueError: There are too few rows, or too few of a class.
    """
    if not fraction:
        return train, None
    labels = list(train[LABELS]) if stratify else None
    counts = Counter(labels or ())
    size = max(min(int(fraction * len(train)), at_most), len(counts), 1)
    if counts and min(counts.values()) < 2:
        rare = min(counts, key=lambda label: counts[label])
        raise ValueError(
            f"label {rare} has one training row, {split} and train need one each: add rows or {split}_fraction=0"
        )
    if len(train) - size < max(len(counts), 1):
        raise ValueError(f"{len(train)} training rows are too few to set {size} apart: add rows or {split}_fraction=0")
    rest, dev = train_test_split(range(len(train)), test_size=size, random_state=seed, stratify=labels)
    return train.select(sorted(rest)), train.select(sorted(dev))


def sample(rows: Dataset, at_most: int | None, *, seed: int) -> Dataset:
    """Return ``at_most`` random rows in their order; all of them for ``None``."""
    if at_most is None or len(rows) <= at_most:
        return rows
    kept, _ = train_test_split(range(len(rows)), train_size=at_most, random_state=seed)
    return rows.select(sorted(kept))
