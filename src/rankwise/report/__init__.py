"""Pictures of what a search did."""

from rankwise.report.drawing import save_figure
from rankwise.report.enabled import Frequency, frequency
from rankwise.report.heatmap import compare_frequency, draw_frequency, plot_frequency
from rankwise.report.history import read_history
from rankwise.report.overlap import Overlaps, overlaps, plot_overlap
from rankwise.report.scores import ScoreRanges, plot_scores, score_ranges
from rankwise.report.share import Shares, plot_share, shares
from rankwise.report.terminal import render_frequency

__all__ = [
    "Frequency",
    "Overlaps",
    "ScoreRanges",
    "Shares",
    "compare_frequency",
    "draw_frequency",
    "frequency",
    "overlaps",
    "plot_frequency",
    "plot_overlap",
    "plot_scores",
    "plot_share",
    "read_history",
    "render_frequency",
    "save_figure",
    "score_ranges",
    "shares",
]
