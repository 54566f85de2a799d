"""What a user says: defaults, checks, explanations."""
