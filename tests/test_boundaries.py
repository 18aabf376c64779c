"""The shape of the house: layers, instant help, and documents that name what exists."""

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from cyclic_cli import registry
from cyclic_cli.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cyclic_cli"
LAYERS = [  # from the ground up; within a layer a module may import those named before it
    ["__init__"],
    ["errors", "registry", "events", "identity", "shapes", "scrub", "config", "lease", "workers"],
    (
        "metrics records storage nifti dicom images similar panels text layouts sources phantom vocabulary retrieval "
        "onnx_file onnx_model quantisation embedding_file approximate probing controls neighbours wording"
    ).split(),
    "models data distributed text_towers modalities mixing joint torch_model objectives gradients".split(),
    (
        "offer shards joining prepare saving resuming stopping validation tensorboard autoencoding alignment training "
        "inference translating evaluation export embedding search search_page"
    ).split(),
    ["console", "commands", "cli", "__main__"],
]
ORDER = [module for layer in LAYERS for module in layer]
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
KNOWS = {  # what only some modules may import
    "pydicom": {"dicom"},
    "nibabel": {"nifti"},
    "lightning_fabric": {"distributed"},
    "typer": {"cli", "commands"},
    "rich": {"console"},
    "pyarrow": {"storage", "embedding_file"},
    "onnx": {"onnx_file", "quantisation", "export"},
    "onnxruntime": {"onnx_model", "quantisation"},
    "tokenizers": {"vocabulary"},
    "transformers": {"text_towers"},
    "sklearn": {"probing", "controls", "wording"},
    "jinja2": {"search_page"},
    "faiss": {"approximate"},
    "sacrebleu": {"wording"},
    "rouge_score": {"wording"},
    "torch": {
        "text_towers",
        "modalities",
        "mixing",
        "joint",
        "autoencoding",
        "alignment",
        "models",
        "objectives",
        "data",
        "distributed",
        "gradients",
        "saving",
        "resuming",
        "validation",
        "stopping",
        "tensorboard",
        "training",
        "torch_model",
        "translating",
        "evaluation",
        "export",
    },
}


def modules() -> list[tuple[str, Path]]:
    """Every source file, under the name of the module or folder it belongs to."""
    return [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in sorted(PACKAGE.rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides its layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_stands_in_a_layer() -> None:
    assert {name for name, _ in modules()} == set(ORDER)


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(getattr(value, "stem", value)))
def test_imports_point_down(module: str, path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "cyclic_cli" and len(parts) > 1 and parts[1] in ORDER and parts[1] != module:
            assert ORDER.index(parts[1]) < ORDER.index(module), f"{module} imports {parts[1]}, which lies above it"


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(getattr(value, "stem", value)))
def test_libraries_stay_where_they_are_known(module: str, path: Path) -> None:
    for name in imports(path):
        allowed = KNOWS.get(name.split(".")[0])
        assert allowed is None or module in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("words", ["", "demo", "prepare", "train", "reconstruct", "embed", "search", "export", "info"])
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
    code = "import sys, cyclic_cli.prepare, cyclic_cli.phantom; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def commands() -> dict[str, str]:
    group = typer.main.get_command(app)
    return {name: command.help or "" for name, command in group.commands.items()}  # type: ignore[attr-defined]


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, help_text in commands().items():
        assert help_text, name
        assert f"cyclic {name}" in readme


def test_changelog_and_package_have_one_version() -> None:
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version("cyclic-cli")


def test_both_ways_to_start_give_the_version() -> None:
    for start in (["-m", "cyclic_cli"], ["-c", "from cyclic_cli.__main__ import main; main()"]):
        ran = subprocess.run([sys.executable, *start, "--version"], capture_output=True, text=True, check=True)
        assert ran.stdout == f"cyclic {version('cyclic-cli')}\n"
