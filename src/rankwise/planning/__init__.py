"""Before anything is trained: what a search would cost, what it would choose, and how much rank a path should get."""
