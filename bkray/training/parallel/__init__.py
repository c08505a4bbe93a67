"""Several ranks: what each holds, and what they send each other."""
