"""The recipes, as the wheel ships them: ``rankwise train minilm/mrpc-uniform`` finds them by name."""
