"""What training costs: FLOPs, seconds, where they go."""
