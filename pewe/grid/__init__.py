"""The experiment: a suite, its steps, and carrying them out."""
