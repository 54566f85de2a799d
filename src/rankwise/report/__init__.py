"""Pictures of what searches and edits did."""

from rankwise.report.drawing import save_figure
from rankwise.report.edit_grid import EditGrid, Outcome, edit_grid, plot_edit_grid
from rankwise.report.enabled import Frequency, frequency
from rankwise.report.gradients import GradientRatio, gradient_ratio, plot_gradient_ratio, read_gradients
from rankwise.report.heatmap import compare_frequency, draw_frequency, plot_frequency
from rankwise.report.history import read_history
from rankwise.report.overlap import Overlaps, overlaps, plot_overlap
from rankwise.report.scores import ScoreRanges, plot_scores, score_ranges
from rankwise.report.share import Shares, plot_share, shares
from rankwise.report.spectra import Spectra, plot_spectra, read_spectra, spectra
from rankwise.report.structure import Structure, structures
from rankwise.report.structure_diagram import plot_structure
from rankwise.report.terminal import render_frequency

__all__ = [
    "EditGrid",
    "Frequency",
    "GradientRatio",
    "Outcome",
    "Overlaps",
    "ScoreRanges",
    "Shares",
    "Spectra",
    "Structure",
    "compare_frequency",
    "draw_frequency",
    "edit_grid",
    "frequency",
    "gradient_ratio",
    "overlaps",
    "plot_edit_grid",
    "plot_frequency",
    "plot_gradient_ratio",
    "plot_overlap",
    "plot_scores",
    "plot_share",
    "plot_spectra",
    "plot_structure",
    "read_gradients",
    "read_history",
    "read_spectra",
    "render_frequency",
    "save_figure",
    "score_ranges",
    "shares",
    "spectra",
    "structures",
]
