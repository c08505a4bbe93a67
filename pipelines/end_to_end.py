"""From text to a trained model and a report."""

from bkray.runtime.submission import main

if __name__ == "__main__":
    main(until="evaluation", description=__doc__)
