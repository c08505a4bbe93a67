"""Prepare the ordered training set of a recipe with Ray Data."""

from bkray.runtime.submission import main

if __name__ == "__main__":
    main(until="training_set", description=__doc__)
