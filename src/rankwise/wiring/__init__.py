"""Where the points of a block are, and the hooks that bring block paths there."""
