"""How the search is driven: by the optimizer's hooks in any loop, by a callback in Trainer."""
