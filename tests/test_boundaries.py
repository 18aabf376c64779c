"""The shape of the house: rooms and their order, instant help, and documents that name what exists."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from cyclic_cli import registry
from cyclic_cli.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cyclic_cli"
FLOORS = """
    errors events earlier_names
    registry environment workers console linear_algebra privacy
    config text_encoders
    storage distributed
    imaging
    phantom data
    pretrained
    codes prepare metrics
    models modalities alignment
    objectives training inference
    search export
    evaluation
    commands
    cli
    __main__
"""  # from the ground up: a room imports from the floors below it alone
FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
HEAVY = {
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "pydicom",
    "PIL",
    "pyarrow",
    "lightning_fabric",
    "matplotlib",
    "safetensors",
    "sklearn",
    "tokenizers",
}
KNOWS = {  # who may import a library: a room, or a file of one
    "pydicom": "imaging/dicom",
    "nibabel": "imaging/nifti.py",
    "lightning_fabric": "distributed.py",
    "typer": "cli.py commands",
    "rich": "console.py",
    "pyarrow": "storage",
    "onnx": "storage/onnx_file.py export pretrained/onnx_graph.py pretrained/onnx_inputs.py",
    "onnxruntime": "inference/onnx_model.py export/quantisation.py pretrained/onnx_graph.py",
    "tokenizers": "text_encoders pretrained",
    "transformers": "text_encoders pretrained",
    "scipy": "linear_algebra.py",
    "sklearn": "linear_algebra.py metrics evaluation/baselines.py codes/terms.py",
    "jinja2": "search/page.py",
    "faiss": "search/faiss_index.py",
    "sacrebleu": "metrics",
    "rouge_score": "metrics",
    "torch": (
        "linear_algebra.py distributed.py data pretrained codes models modalities objectives text_encoders training "
        "evaluation export "
        "inference/torch_model.py inference/translate.py"
    ),
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


@cache
def imports(file: str) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import hides its room"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(file: str) -> set[str]:
    """The files of the package that a file imports."""
    found = set()
    for name in imports(file):
        parts = name.split(".")[1:] if name.startswith("cyclic_cli.") else []
        paths = ["/".join(parts[:length]) + ".py" for length in range(1, len(parts) + 1)]
        found |= {path for path in paths if path in FILES}
    return found - {file}


def test_every_file_stands_in_a_room() -> None:
    assert {room_of(file) for file in FILES} - {"__init__"} == set(FLOOR)


def test_imports_point_down() -> None:
    for file in FILES:
        room = room_of(file)
        above = [one for one in own_imports(file) if room_of(one) != room and FLOOR[room_of(one)] >= FLOOR[room]]
        assert not above, f"{file} imports {above}, which no lower floor holds"


def test_files_of_a_room_import_one_another_in_no_circle() -> None:
    left = {file: {other for other in own_imports(file) if room_of(other) == room_of(file)} for file in FILES}
    while free := {file for file, others in left.items() if not others & left.keys()}:
        left = {file: others for file, others in left.items() if file not in free}
    assert not left


def test_a_package_hands_nothing_on() -> None:
    assert not any(imports(file) for file in FILES if file.endswith("__init__.py"))


def test_libraries_stay_where_they_are_known() -> None:
    for file in FILES:
        for name in imports(file):
            places = KNOWS.get(name.split(".")[0], file).split()
            assert any(file == place or file.startswith(f"{place}/") for place in places), f"{file} imports {name}"


@pytest.mark.parametrize(
    "words", ["", "demo", "prepare", "train", "reconstruct", "embed", "search", "evaluate", "export", "info"]
)
def test_help_loads_nothing_heavy_and_lists_the_architectures(words: str) -> None:
    code = (
        "import sys\n"
        "from cyclic_cli.__main__ import main\n"
        f"sys.argv = ['cyclic', *{words.split()!r}, '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('LOADED', sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("LOADED []")
    if words in ("", "train"):
        for name in registry.names("models"):
            assert name in out


def test_prepare_loads_no_torch() -> None:
    code = "import sys, cyclic_cli.prepare.task, cyclic_cli.phantom.dataset; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def commands() -> dict[str, str]:
    group = typer.main.get_command(app)
    return {name: command.help or "" for name, command in group.commands.items()}  # type: ignore[attr-defined]


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, help_text in commands().items():
        assert help_text, name
        assert f"cyclic {name}" in readme


def test_the_paths_through_the_code_name_functions_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"^    ([\w/]+\.py): ([\w.]+)", guide, re.MULTILINE)
    assert len(named) > 25
    for file, name in named:
        body: list[ast.stmt] = ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            found = [node for node in body if getattr(node, "name", "") == part]
            assert found, f"{file} has no {name}"
            body = getattr(found[0], "body", [])


def test_changelog_and_package_have_one_version() -> None:
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version("cyclic-cli")


def test_both_ways_to_start_give_the_version() -> None:
    for start in (["-m", "cyclic_cli"], ["-c", "from cyclic_cli.__main__ import main; main()"]):
        ran = subprocess.run([sys.executable, *start, "--version"], capture_output=True, text=True, check=True)
        assert ran.stdout == f"cyclic {version('cyclic-cli')}\n"
