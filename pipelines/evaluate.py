"""Evaluate the model of a recipe on the test split, training it first where needed."""

from bkray.runtime.submission import main

if __name__ == "__main__":
    main(until="evaluation", description=__doc__)
