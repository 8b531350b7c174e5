"""From similarities to weights, from weights and deltas (or whole models) to merged ones."""
