"""Train sessions from arrays: one job trains one session of one run and writes a checkpoint."""
