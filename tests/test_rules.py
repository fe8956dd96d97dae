"""The house rules that a machine can check: who imports whom, what is installed,
what is published.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import EXAMPLES, NODES, ROOT

import artmancer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {
    "cv2",
    "diffusers",
    "onnxruntime",
    "patchmatch",
    "pymatting",
    "rembg",
    "safetensors",
    "transformers",
    "ultralytics",
}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules a file imports, relative ones as artmancer... or nodes..."""
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [] if not node.level else list(package[: len(package) - node.level + 1])
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("artmancer"), ids=lambda path: path.stem)
def test_the_library_knows_nothing_of_comfyui(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server"}


@pytest.mark.parametrize("path", modules("nodes"), ids=lambda path: path.stem)
def test_only_comfy_host_touches_comfyuis_modules(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    if path.stem != "comfy_host":
        assert not roots & {"comfy", "comfy_execution", "folder_paths", "server"}


@pytest.mark.parametrize("one", ["qwen", "draft", "masks", "matting"])
def test_qwen_draft_masks_and_matting_do_not_know_each_other(one: str) -> None:
    for path in [*modules(f"artmancer/{one}"), *(ROOT / "artmancer").glob(f"{one}.py")]:
        # refine is the masks' arithmetic, which every room uses.
        known = {name for name in imported(path) if not name.startswith("artmancer.masks.refine")}
        for other in {"qwen", "draft", "masks", "matting"} - {one}:
            assert not any(re.match(rf"artmancer\.{other}(\.|$)", name) for name in known)


@pytest.mark.parametrize(
    "path", modules("artmancer") + modules("nodes"), ids=lambda path: path.stem
)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path, top_level_only=True)} & HEAVY


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Of a function, without its docstring."""
    whole = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return whole
    said = function.body[0]
    return whole - ((said.end_lineno or 0) - said.lineno + 1)


@pytest.mark.parametrize(
    "path", modules("artmancer") + modules("nodes"), ids=lambda path: path.stem
)
def test_functions_are_short(path: Path) -> None:
    """But for a node's schema, which is a list that one reads from top to bottom."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert code_lines(node) <= 60 or node.name == "define_schema", node.name


def test_comfyuis_door_is_small_and_imports_no_torch() -> None:
    door = ROOT / "__init__.py"
    assert len(door.read_text().splitlines()) < 40
    probe = f"import sys, runpy; runpy.run_path({str(door)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_help_does_not_wait_for_torch() -> None:
    probe = "import sys, artmancer.cli as c; c._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_comfyui_manager_installs_what_the_project_depends_on() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == PROJECT["project"][
        "dependencies"
    ]


def test_users_get_lower_bounds_only_and_torch_is_not_moved() -> None:
    for requirement in PROJECT["project"]["dependencies"]:
        specifier = requirement.split(";")[0]
        assert not re.search(r"==|<|~=|!=", specifier)
        if specifier.startswith("torch"):
            assert specifier == "torch"


def test_development_packages_are_pinned_and_name_no_index() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert all(re.match(r"[\w.\[\]-]+==[\w.+]+( ; .*)?$", line) for line in lines)


def test_no_file_names_the_host_of_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    host = re.compile(rb"(pypi\.org|pythonhosted|registry\.npmjs|download\.pytorch)")
    for name in filter(None, listed.split("\0")):
        if name != "tests/test_rules.py" and (ROOT / name).is_file():
            assert not host.search((ROOT / name).read_bytes()), name


def test_the_version_is_one() -> None:
    assert PROJECT["project"]["version"] == artmancer.__version__
    assert f"## [{artmancer.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_example_has_its_licence() -> None:
    table = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.png"):
        assert f"| {path.name} |" in table


def test_there_is_one_folder_of_templates() -> None:
    # With two, ComfyUI serves the files of the first and answers 404 for the second's.
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (ROOT / name).is_dir()] == ["workflows"]


def test_every_node_has_a_help_page_with_its_picture() -> None:
    assert len(NODES) == len(set(NODES)) == 25
    for name in NODES:
        page = ROOT / "web" / "docs" / f"{name}.md"
        picture = re.search(r"!\[.+\]\((.+)\)", page.read_text())
        assert picture and (page.parent / picture[1]).is_file(), name


def test_an_installed_package_has_every_module_and_every_graph() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in modules("artmancer")}
    assert set(setuptools["packages"]) == folders | {"artmancer.gateway.graphs"}
    assert setuptools["package-dir"]["artmancer.gateway.graphs"] == "workflows/api"
