"""Pretrain, then fine-tune, in phases: python -m pipelines.transfer FILE [key=value …]."""

from bkray.runtime.exits import exit_codes
from bkray.runtime.submission import arguments, closing_lines
from bkray.runtime.transfer import run_transfer

if __name__ == "__main__":
    given = arguments(__doc__, "transfer", "pretrain.training.lr=3e-4")
    with exit_codes():
        result = run_transfer(given.file, tuple(given.overrides), given.out, given.cpus)
        print("\n".join(closing_lines(result)))
