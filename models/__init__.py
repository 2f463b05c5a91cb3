"""What is ported: one folder per model family, found by name."""
