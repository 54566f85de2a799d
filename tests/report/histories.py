"""Searches to draw, made by hand and real, and whether a picture of them can be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from tests.models import adapted, class_batches, tiny_bert

import rankwise
from rankwise.rules.records import Record, SearchRecord

KINDS = ("res1", "res2", "in", "cut")


def record(
    chosen: Sequence[str],
    candidates: Sequence[str],
    unscored: Sequence[str] = (),
    *,
    step: int = 0,
    scores: dict[str, float | None] | None = None,
    proxy: str = "grad_norm",
    budget: float | int = 0.25,
) -> SearchRecord:
    """One search; every scored candidate scores 1 unless ``scores`` says otherwise."""
    values = {name: 1.0 for name in candidates if name not in unscored} | (scores or {})
    return SearchRecord(
        step=step,
        search=0,
        proxy=proxy,
        scores=values,
        unscored=list(unscored),
        chosen=list(chosen),
        budget=budget,
    )


def paths(blocks: int, *rows: str) -> list[str]:
    """The names of a model's paths; the first block has no ``cut``."""
    return [f"layers.{block}.{row}" for block in range(blocks) for row in rows if block or row != "cut"]


def mixed_history(blocks: int = 6, searches: int = 8) -> list[SearchRecord]:
    """Searches over q, v and all shortcuts of HeteroLoRA that move on by one path each time."""
    names = paths(blocks, "query", "value", *KINDS)
    kept = len(names) // 4
    return [
        record(
            names[search : search + kept],
            names,
            step=50 * search,
            scores={name: 0.9**search * (place + 1) for place, name in enumerate(names)},
        )
        for search in range(searches)
    ]


def real_history(**fields: Any) -> list[Record]:
    """What a tiny encoder writes down during a few training steps."""
    options = {"target_modules": ["query", "value"], "mode": "dynamic", "budget": 0.5, "search_every": 2, **fields}
    model = adapted(tiny_bert(), **options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    allocator = rankwise.Allocator(model, optimizer, batches=class_batches())
    allocator.begin()
    model.train()
    for batch in class_batches(5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    allocator.close()
    return rankwise.history(model)


def collisions(figure: Figure) -> list[str]:
    """The words of a picture that touch others or leave it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = {
        label
        for axes in figure.axes
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim())))
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        if not low <= tick.get_loc() <= high
        for label in (tick.label1, tick.label2)  # on the left, and on the right as beside a scale of colours
    }
    boxes = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(text.get_text().rstrip())  # a heading keeps an empty line for its note
        if text.get_text() and text.get_visible() and text not in unseen:
            boxes.append((text.get_text(), text.get_window_extent(canvas.get_renderer())))
    sheet = figure.bbox
    leaving = [word for word, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > sheet.x1 or box.y1 > sheet.y1]
    return leaving + [
        f"{one} / {other}" for (one, box), (other, place) in combinations(boxes, 2) if box.overlaps(place)
    ]
