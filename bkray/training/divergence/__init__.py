"""Where loss, gradient or a parameter stops being finite."""
