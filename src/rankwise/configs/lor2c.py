"""``Lor2cConfig``: low-rank residual connections, and how they are shared, merged and injected."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import LoraConfig, PeftType

from rankwise.configs.path import BlockPaths, PathConfig
from rankwise.errors import check_choice

CHOICES: dict[str, tuple[str, ...]] = {
    "metric": ("sfs", "mean_sv"),
    "merge_select": ("lowest", "highest"),
    "merge_survivor": ("higher", "first"),
    "inject_select": ("lowest", "highest"),
    "edit_unit": ("epochs", "steps"),
}


@dataclass
class Lor2cConfig(PathConfig):
    """A low-rank residual connection across each block (LoR2C), with sharing, merging and injecting.

    ``out = Block(h) + s B A dropout(h)`` with ``s = lora_alpha / r``: one path from the input of each block to its
    output, after the block's last norm. Paper: "LoR2C: Low-Rank Residual Connection Adaptation for Parameter-Efficient
    Fine-Tuning", arXiv 2503.00572. The variants of the paper: ``share=True`` (ShareLoR2C), ``merges=M`` (MergeLoR2C),
    ``injections=I`` (InjectLoR2C), both (IMLoR2C). ``r``, ``lora_alpha`` and ``lora_dropout`` size these paths.

    The schedule. In ``E`` epochs an edit of a kind that is to happen ``M`` times is due every
    ``floor(E / (4 M + 1e-9)) + 1`` epochs, at the end of the epoch, until ``M`` are done: with 30 epochs and 3 merges
    after epochs 3, 6 and 9. All edits must be due in the first half of training. ``edit_unit="steps"`` counts optimizer
    steps instead, for which any training loop will do. Where both kinds are due, the merge comes first.

    A merge takes two neighbouring paths and keeps one, which from then on spans both; the other is off for good. An
    injection replaces the path of one block by LoRA on that block's query and value projections (GPT-2, Phi-3 and
    ModernBERT: on the one projection that makes queries, keys and values), which is there from the start, switched off,
    so that optimizer, learning-rate schedule and checkpoints know it.

    Args:
        share: One ``A`` for all blocks, one ``B`` each.
        merges: How many merges.
        injections: How many injections.
        metric: What paths are chosen by: ``"sfs"``, 1 minus the share of the ``sfs_k`` largest singular values of
            ``B A`` in their sum, or ``"mean_sv"``, their mean (use ``inject_select="highest"`` with it, as published).
        sfs_k: How many singular values SFS leaves out, ``1 <= sfs_k < r``.
        merge_select: Merge the pair with the ``"lowest"`` or the ``"highest"`` sum of scores.
        merge_survivor: Keep the path with the ``"higher"`` score, or the ``"first"``.
        max_span: Blocks that a merged path may span; no limit if left out.
        freeze_merged: Stop training a path that was merged; it keeps contributing (an ablation).
        inject_select: Replace the path with the ``"lowest"`` or the ``"highest"`` score.
        inject_targets: The projections that injected LoRA runs along; the family's query and value if left out, or the
            one that makes both. An empty list deletes the path instead (an ablation).
        inject_r: Rank of injected LoRA; ``r // 2`` if left out, the same number of parameters on two square
            projections, or on one whose output is three times as wide.
        inject_alpha: Its alpha; ``lora_alpha * inject_r / r`` if left out.
        inject_dropout: Its dropout.
        edit_unit: Count ``"epochs"`` or optimizer ``"steps"``.
        separate_edits: Where both kinds are due at once, inject one epoch (or step) later.
        strict_neighbours: Do not merge the paths beside an injected block.
        total_steps: Optimizer steps of the whole training, where no callback tells it.

    Raises:
        ValueError: A value is outside what is allowed, or an option of PEFT's LoRA does not fit.
    """

    linear_waits: ClassVar[bool] = True

    lora_alpha: int = 16
    share: bool = False
    merges: int = 0
    injections: int = 0
    metric: str = "sfs"
    sfs_k: int = 1
    merge_select: str = "lowest"
    merge_survivor: str = "higher"
    max_span: int | None = None
    freeze_merged: bool = False
    inject_select: str = "lowest"
    inject_targets: list[str] | None = None
    inject_r: int | None = None
    inject_alpha: float | None = None
    inject_dropout: float = 0.0
    edit_unit: str = "epochs"
    separate_edits: bool = False
    strict_neighbours: bool = False
    total_steps: int | None = None

    def __post_init__(self) -> None:
        """Check every field against the others."""
        super().__post_init__()
        self.peft_type = PeftType["LOR2C"]
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        self.check_whole_numbers(
            merges=0,
            injections=0,
            sfs_k=1,
            max_span=2,
            inject_r=1,
            total_steps=1,
            optional=("max_span", "inject_r", "total_steps"),
        )
        if self.target_modules:
            raise ValueError(
                f"target_modules={self.target_modules!r}: LoR2C runs across whole blocks; the projections that "
                "injected LoRA runs along are inject_targets, and LoRA beside LoR2C from the start is "
                "HeteroLoraConfig(shortcuts=['layer'], ...)"
            )
        if self.init_lora_weights == "orthogonal":
            raise ValueError(
                "init_lora_weights='orthogonal' sets B from W0, and LoR2C has no W0: use True or 'gaussian'"
            )
        if self.edits and self.metric == "sfs" and self.sfs_k >= self.r:
            raise ValueError(
                f"sfs_k={self.sfs_k} must be below r={self.r}: with all singular values left out every SFS is 0"
                + ("; r=1 has no SFS, use metric='mean_sv' or a higher r" if self.r == 1 else "")
            )
        targets: Any = self.inject_targets
        if isinstance(targets, str):
            raise ValueError(f"inject_targets={targets!r} must be a list: [{targets!r}]")
        share: Any = self.share
        if not isinstance(share, bool):
            raise ValueError(f"share={share!r} must be True or False")
        self.check_types("inject_targets", "freeze_merged", "separate_edits", "strict_neighbours")
        if self.inject_alpha is not None:
            self.check_alpha("inject_alpha", self.inject_alpha, ", or None for lora_alpha * inject_r / r")
        if self.injections and self.inject_targets != [] and self.inject_rank < 1:
            raise ValueError(f"r={self.r} leaves inject_r = r // 2 = 0: give inject_r, or raise r")
        if not isinstance(self.inject_dropout, (int, float)) or not 0.0 <= self.inject_dropout < 1.0:
            raise ValueError(f"inject_dropout={self.inject_dropout!r} must lie in [0, 1)")

    def check_blocks(self, blocks: list[int]) -> None:
        """Refuse more edits than a model has blocks, or neighbours, for.

        Raises:
            ValueError: Says how many there may be.
        """
        neighbours = sum(block + 1 in blocks for block in blocks)
        for name, count, most in (("merges", self.merges, neighbours), ("injections", self.injections, len(blocks))):
            if count > most:
                kind = name.removesuffix("s") if most == 1 else name
                chosen = self.layers_to_transform
                those = "" if chosen is None else f" (layers_to_transform={chosen!r})"
                raise ValueError(
                    f"{name}={count}: {len(blocks)} blocks have at most {most} {kind}{those}; lower {name}"
                )

    def check_waiting(self, blocks: set[int]) -> None:
        """Refuse more injections than blocks in which LoRA waits.

        Raises:
            ValueError: Says how many there may be.
        """
        if self.injections > len(blocks) and not self.deletes:
            raise ValueError(
                f"injections={self.injections}: inject_targets={self.inject_targets!r} are in {len(blocks)} blocks "
                "only; lower injections or name projections that every block has"
            )

    @property
    def edits(self) -> int:
        """How many edits are to happen."""
        return self.merges + self.injections

    @property
    def acts(self) -> bool:
        """Whether there are edits."""
        return self.edits > 0

    @property
    def deletes(self) -> bool:
        """Whether an injection removes a path and puts nothing in its place."""
        return self.inject_targets == []

    @property
    def on_disable(self) -> str:
        """What becomes of a path that is switched off."""
        return "freeze" if self.freeze_merged else "keep"

    @property
    def inject_rank(self) -> int:
        """The rank of injected LoRA."""
        return self.r // 2 if self.inject_r is None else self.inject_r

    def block_paths(self) -> BlockPaths:
        """Return the sizes of the residual connections."""
        return BlockPaths(("layer",), self.r, self.lora_alpha, self.lora_dropout, share=self.share)

    def linear_targets(self, family: list[str]) -> Any:
        """Return the projections that injected LoRA runs along; none where nothing is injected."""
        if not self.injections:
            return []
        if self.inject_targets is not None:
            return self.inject_targets
        if not all(family):
            raise ValueError(
                "the description of this model's family names no query and value, which LoR2C injects LoRA into: give "
                "inject_targets, or name them with rankwise.register_anatomy"
            )
        return list(dict.fromkeys(family))

    def linear_paths(self) -> LoraConfig:
        """Return the config that sizes injected LoRA."""
        view: Any = copy.copy(self)
        view.r = self.inject_rank
        scale = self.lora_alpha / self.r
        view.lora_alpha = scale * self.inject_rank if self.inject_alpha is None else self.inject_alpha
        view.lora_dropout = self.inject_dropout
        sized: LoraConfig = view
        return sized
