"""Recipes: what a run is, read and checked before anything is spent."""
