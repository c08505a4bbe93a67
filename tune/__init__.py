"""What a sweep is: its entry point, and the sweeps themselves as YAML."""
