"""Studies: many runs that answer one question, each a normal run folder, on one machine or many."""
