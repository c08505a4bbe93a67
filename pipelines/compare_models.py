"""Compare models, or any arms of one recipe: python -m pipelines.compare_models COMPARISON [key=value …]."""

from bkray.runtime.comparison import run_comparison
from bkray.runtime.exits import exit_codes
from bkray.runtime.submission import arguments

if __name__ == "__main__":
    given = arguments(__doc__, "comparison", "seeds=[0,1]")
    with exit_codes():
        run_comparison(given.file, tuple(given.overrides), given.out, given.cpus)
