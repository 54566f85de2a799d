"""Allocation: when to search, what to choose, and the record of it."""
