"""What a run may spend less on; each is off by default and one small module."""
