"""Names and numbers: what may be chosen, under which budget, when. No torch."""
