"""Scores: how much a path is worth having."""
