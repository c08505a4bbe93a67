"""What outlives a process: checkpoints, exported models."""
