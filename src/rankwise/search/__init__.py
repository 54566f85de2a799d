"""What happens between optimizer steps: searches, edits, their history and their state."""
