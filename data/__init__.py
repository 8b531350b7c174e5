"""Data sets: the embedded mini gym, and the builder of the paper's tasks."""
