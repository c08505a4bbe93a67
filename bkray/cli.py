"""Train language models on Ray: prepare the text, train, evaluate, report. `bkray run RECIPE` does it all."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from bkray.config import load_recipe
from bkray.runtime.exits import exit_codes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
    rich_markup_mode=None,
)

RecipeFile = Annotated[Path, typer.Argument(help="YAML file of the recipe")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="key=value", help="such as training.lr=3e-4")]
Out = Annotated[Path | None, typer.Option(help="folder for runs (default: runs)")]
Cpus = Annotated[int | None, typer.Option(min=1, help="logical CPUs (default: the cores there are)")]
RunFolder = Annotated[Path, typer.Argument(help="folder of a finished run, for example runs/quickstart")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bkray {version('bkray')}")
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="show the version")
    ] = False,
) -> None:
    pass


@app.command()
@exit_codes()
def run(recipe: RecipeFile, overrides: Overrides = None, out: Out = None, cpus: Cpus = None) -> None:
    """Do everything: prepare, train, evaluate, report. Run it again to go on after a stop."""
    _pipeline(recipe, overrides, out, cpus, until="evaluation")


@app.command()
@exit_codes()
def prepare(recipe: RecipeFile, overrides: Overrides = None, out: Out = None, cpus: Cpus = None) -> None:
    """Prepare the ordered training set with Ray Data."""
    _pipeline(recipe, overrides, out, cpus, until="training_set")


@app.command()
@exit_codes()
def train(recipe: RecipeFile, overrides: Overrides = None, out: Out = None, cpus: Cpus = None) -> None:
    """Train the model with Ray Train, preparing its data first where needed."""
    _pipeline(recipe, overrides, out, cpus, until="model")


@app.command()
@exit_codes()
def evaluate(recipe: RecipeFile, overrides: Overrides = None, out: Out = None, cpus: Cpus = None) -> None:
    """Evaluate on the test split, training first where needed, and write the report."""
    _pipeline(recipe, overrides, out, cpus, until="evaluation")


@app.command()
@exit_codes()
def plan(recipe: RecipeFile, overrides: Overrides = None, out: Out = None, cpus: Cpus = None) -> None:
    """Show the stages, what is already there and what it takes, without starting Ray."""
    with _importing():
        from bkray.runtime.overview import print_plan

    print_plan(load_recipe(recipe, overrides or ()), _out(out), cpus)


@app.command()
@exit_codes()
def generate(
    folder: RunFolder,
    prompt: Annotated[str, typer.Option(help="text to go on from")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="tokens to write at most")] = 100,
    temperature: Annotated[float, typer.Option(min=0.01, help="lower is more certain")] = 0.8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write text with the model of a finished run."""
    with _importing():
        from bkray.runtime.overview import print_text

    print_text(folder, prompt, tokens, temperature, seed)


@app.command()
@exit_codes()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="such as runs/quickstart/checkpoints/step-00000100")],
) -> None:
    """Make a model's folder of a checkpoint: to score, start or generate with; prints its path."""
    with _importing():
        from bkray.runtime.export import export_checkpoint

    typer.echo(export_checkpoint(checkpoint))


@app.command()
@exit_codes()
def compress(
    folder: RunFolder,
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="METHOD", help="int8, int4, int4:32, prune:SHARE, layers:NUMBER, or as prune:0.25+int8"
        ),
    ] = None,
    cpus: Cpus = None,
) -> None:
    """Quantize, prune or shorten the model of a finished run; leaves smaller copies and a table."""
    with _importing():
        from bkray.runtime.compression import compress

    typer.echo(compress(folder.absolute(), tuple(methods or ()), cpus))


@app.command()
@exit_codes()
def report(folder: RunFolder) -> None:
    """Write summary.json and report.html of a finished run again, from its artifacts."""
    with _importing():
        from bkray.runtime.pipeline import rewrite_results

    typer.echo(rewrite_results(folder))


@app.command()
@exit_codes()
def sweep(
    spec: Annotated[
        Path, typer.Argument(help="YAML file of the sweep, for example tune/sweeps/quickstart.yaml")
    ],
    overrides: Overrides = None,
    out: Out = None,
    cpus: Cpus = None,
) -> None:
    """Explore settings with Ray Tune; leaves a table, a picture and winner.yaml."""
    with _importing():
        from bkray.runtime.sweep import run_sweep

    run_sweep(spec, tuple(overrides or ()), _out(out), cpus)


@app.command()
@exit_codes()
def compare(
    spec: Annotated[
        Path,
        typer.Argument(help="YAML file of the comparison, for example pipelines/comparisons/models.yaml"),
    ],
    overrides: Overrides = None,
    out: Out = None,
    cpus: Cpus = None,
) -> None:
    """Compare models, or any arms of one recipe, at equal steps and equal time, with intervals."""
    with _importing():
        from bkray.runtime.comparison import run_comparison

    run_comparison(spec, tuple(overrides or ()), _out(out), cpus)


@app.command()
@exit_codes()
def active(
    spec: Annotated[
        Path, typer.Argument(help="YAML file of the loop, for example pipelines/recipes/active_loop.yaml")
    ],
    overrides: Overrides = None,
    out: Out = None,
    cpus: Cpus = None,
) -> None:
    """Train in rounds on windows that the model selects, and compare with random ones at equal cost."""
    with _importing():
        from bkray.runtime.active import run_active

    run_active(spec, tuple(overrides or ()), _out(out), cpus)


@app.command()
@exit_codes()
def transfer(
    spec: Annotated[
        Path, typer.Argument(help="YAML file of the phases, for example pipelines/recipes/transfer.yaml")
    ],
    overrides: Overrides = None,
    out: Out = None,
    cpus: Cpus = None,
) -> None:
    """Pretrain, then fine-tune on the target, in phases; a phase that was run before is not run again."""
    with _importing():
        from bkray.runtime.submission import closing_lines
        from bkray.runtime.transfer import run_transfer

    result = run_transfer(spec, tuple(overrides or ()), _out(out), cpus)
    typer.echo("\n".join(closing_lines(result)))


@app.command()
@exit_codes()
def fetch(
    what: Annotated[str, typer.Argument(metavar="wordnet", help="what to download")],
    index: Annotated[str | None, typer.Option(help="URL of a mirror's index.xml (default: nltk's)")] = None,
    deb: Annotated[
        Path | None,
        typer.Option(help="file of Debian's wordnet-base, which holds WordNet without the tagger"),
    ] = None,
) -> None:
    """Download word data once, for augmentation synonym; every node of a cluster reads it from NLTK_DATA."""
    with _importing():
        from bkray.augmentation.fetch import fetch

    typer.echo(fetch(what, index, deb))


@app.command()
@exit_codes()
def doctor() -> None:
    """Check this machine: versions, cores, memory, disk, and whether Ray starts and works."""
    with _importing():
        from bkray.runtime.doctor import examine

    raise SystemExit(examine())


@contextmanager
def _importing() -> Iterator[None]:
    """For imports, a tenth sooner: Python would look for garbage among what they make, and find none."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _pipeline(
    recipe: Path, overrides: list[str] | None, out: Path | None, cpus: int | None, until: str
) -> None:
    loaded = load_recipe(recipe, overrides or ())
    with _importing():
        from bkray.runtime.pipeline import run_pipeline
        from bkray.runtime.stopwatch import process_seconds
        from bkray.runtime.submission import closing_lines

    result = run_pipeline(loaded, _out(out), until=until, cpus=cpus, earlier=process_seconds())
    typer.echo("\n".join(closing_lines(result)))


def _out(out: Path | None) -> Path:
    with _importing():
        from bkray.runtime.submission import default_out

    return (out or default_out()).absolute()


def main() -> None:
    app()


if __name__ == "__main__":
    main()
