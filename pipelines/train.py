"""Train the model of a recipe on Ray, preparing its data first where needed."""

from bkray.runtime.submission import main

if __name__ == "__main__":
    main(until="model", description=__doc__)
