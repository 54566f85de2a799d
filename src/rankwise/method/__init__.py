"""Everything that touches PEFT: the tuner, its registration, loading, what becomes of paths outside."""
