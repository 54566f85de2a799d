"""The proxies by name: what each one is, where it was proposed, and what it needs. How it is computed: ``scores``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Proxy:
    """A score of a path.

    Args:
        name: The name a config uses.
        formula: The formula, for people.
        reference: Where it was proposed.
        needs: ``"nothing"``, ``"gradients"`` of the task's loss, its ``"curvature"``, or ``"flow"`` through the
            absolute network.
        blind_at_zero: Whether a path whose matrix is still zero has no score of its own.
    """

    name: str
    formula: str
    reference: str
    needs: str
    blind_at_zero: bool = False


PASSES = {"nothing": 0, "gradients": 1, "flow": 1, "curvature": 2}  # over the batches, by what a proxy needs

PROXIES: dict[str, Proxy] = {
    proxy.name: proxy
    for proxy in (
        Proxy("constant", "1: a fresh random choice at every search", "arXiv 2406.14956", "nothing"),
        Proxy("random", "uniform, drawn once per path from the seed", "control", "nothing"),
        Proxy("grad_norm", "sum of |G|_2 over matrices", "arXiv 2101.08134", "gradients"),
        Proxy("snip", "sum of |theta * G| over matrices", "arXiv 1810.02340", "gradients", blind_at_zero=True),
        Proxy("synflow", "sum of theta * G in the absolute network", "arXiv 2006.05467", "flow", blind_at_zero=True),
        Proxy("newton", "lin^2 / (2 q) along the rank-r truncation of G", "true Fisher, labels drawn", "curvature"),
    )
}
