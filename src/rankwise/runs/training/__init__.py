"""Training, resuming, and what a run writes while it trains."""
