"""Finished runs on the tasks of lm-evaluation-harness."""
