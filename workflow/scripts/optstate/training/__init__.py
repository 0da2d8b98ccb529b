"""From arrays to sessions: one job trains one session of one run and ends in a checkpoint."""
