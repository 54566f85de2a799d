"""Pictures of what a search did."""

from rankwise.report.heatmap import Frequency, draw_frequency, frequency, read_history, render_frequency

__all__ = ["Frequency", "draw_frequency", "frequency", "read_history", "render_frequency"]
