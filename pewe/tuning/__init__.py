"""Few-shot tuning: configuration, lockstep session, optimisers, generation and scores, runs on disk."""
