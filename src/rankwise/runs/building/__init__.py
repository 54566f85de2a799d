"""A recipe made real: tokenizer, model, method and Trainer."""
