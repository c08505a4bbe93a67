"""bkray: train language models for less, on Ray, with savings that anyone can check."""
