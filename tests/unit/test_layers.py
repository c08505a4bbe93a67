"""The house rules about imports: who may use whom, and where ray may be named."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [
    {"config"},
    {"model", "corpus", "curriculum", "selection", "evaluation", "reporting"},
    {"difficulty", "augmentation"},
    {"training"},
    {"runtime"},
    {"cli"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
SOURCES = sorted(path for folder in ("bkray", "pipelines", "tune") for path in (ROOT / folder).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            packages = (f"bkray.{alias.name}" for alias in node.names)
            yield from packages if node.module == "bkray" else (node.module,)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    for module in imported(path):
        package, *names = module.split(".")
        if package == "ray":
            assert top in {"pipelines", "tune"} or rest[0] == "runtime", f"{module} outside bkray/runtime"
        assert package not in {"pipelines", "tune"} or package == top, f"{top} imports {module}"
        if package == "bkray" and names and rest[0] != "__init__":
            mine, other = rest[0] if top == "bkray" else "cli", names[0]
            assert mine == other or FLOOR_OF[other] < FLOOR_OF[mine], f"{mine} imports {module}"


def test_every_folder_has_its_floor():
    folders = {
        path.name for path in (ROOT / "bkray").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders == set(FLOOR_OF) - {"cli"}


def test_the_library_below_runtime_works_without_ray():
    """Names only: an import of ray hidden behind another package would show here as well."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import bkray.training, bkray.model, bkray.difficulty\n"
        "import bkray.augmentation, bkray.evaluation, bkray.reporting"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
