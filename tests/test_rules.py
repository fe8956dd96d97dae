"""The house rules that a machine can check: who imports whom, what is installed,
what is published.
"""

import ast
import functools
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
    "spandrel",
    "transformers",
    "ultralytics",
}
"""Libraries that are imported where they are used, and not at the top of a module."""

COMFYUI = {"comfy", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "server"}
"""ComfyUI's own modules."""

LAYERS = (
    # names, tables and small formats
    "errors variants options recipes folders endpoint_protocol progress report cache model_sets "
    "safetensors_header torch_file onnx_errors patchmatch_process model_headers",
    # images, masks and colors
    "checks images mask_ops tone color registration spill verdict offload report_image client "
    "texture lama fill light hard_edge",
    # a crop and the way back; background removal; HTTP
    "region matting gateway silhouette grain islands",
    # conditioning images; finding objects
    "conditions masks tools",
    # the interface of an editor
    "editor",
    # one edit from end to end, and the editors
    "edit draft lama_editor qwen",
    # this machine's models
    "models doctor set_choice",
    # entry points
    "hosting batch commands",
    "cli __main__",
)
"""The library's modules and packages from the lowest layer to the highest."""

LAYER_OF = {
    f"artmancer.{name}": layer for layer, names in enumerate(LAYERS) for name in names.split()
}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


MODULES = {module_name(path) for path in modules("artmancer", "nodes")}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the modules a file imports by their full names: artmancer..., nodes..."""
    tree = parsed(path)
    package = path.relative_to(ROOT).parts[:-1]
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [] if not node.level else list(package[: len(package) - node.level + 1])
            name = ".".join([*base, *([node.module] if node.module else [])])
            full = {f"{name}.{alias.name}" for alias in node.names}
            names |= {module if module in MODULES else name for module in full}
    return names


def layer_unit(name: str) -> str:
    """Return what a module counts as in LAYERS: itself, or its package."""
    return ".".join(name.split(".")[:2])


def importing(paths: list[Path], forbidden: set[str], top_level_only: bool = False) -> list[str]:
    """Return the modules that import one of the forbidden packages."""
    return [
        module_name(path)
        for path in paths
        if {name.split(".")[0] for name in imported(path, top_level_only)} & forbidden
    ]


def test_the_library_imports_nothing_of_comfyui() -> None:
    assert importing(modules("artmancer"), {*COMFYUI, "comfy_api", "nodes"}) == []


def test_only_comfy_host_imports_comfyuis_modules() -> None:
    others = [path for path in modules("nodes") if path.parent.name != "comfy_host"]
    assert importing(others, COMFYUI) == []


def test_every_module_has_its_layer() -> None:
    units = {layer_unit(name) for name in MODULES if name.startswith("artmancer.")}
    assert units - {"artmancer.__init__"} == set(LAYER_OF)


def test_no_module_imports_from_a_higher_layer() -> None:
    upwards = [
        f"{module_name(path)} imports {name}"
        for path in modules("artmancer")
        for own in [LAYER_OF.get(layer_unit(module_name(path)), -1)]
        for name in imported(path)
        if LAYER_OF.get(layer_unit(name), -1) > own
    ]
    assert upwards == []


def test_no_modules_import_each_other() -> None:
    imports = {name: set[str]() for name in LAYER_OF}
    for path in modules("artmancer"):
        own = layer_unit(module_name(path))
        units = {layer_unit(name) for name in imported(path)}
        imports.setdefault(own, set()).update(units & LAYER_OF.keys() - {own})
    while free := [name for name, others in imports.items() if not others & imports.keys()]:
        for name in free:
            del imports[name]
    assert not imports, "these form a cycle"


@pytest.mark.parametrize("one", ["qwen", "draft", "masks", "matting"])
def test_editors_masks_and_matting_do_not_import_each_other(one: str) -> None:
    for path in [*modules(f"artmancer/{one}"), *(ROOT / "artmancer").glob(f"{one}.py")]:
        for other in {"qwen", "draft", "masks", "matting"} - {one}:
            assert f"artmancer.{other}" not in map(layer_unit, imported(path))


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    assert importing(modules("artmancer", "nodes"), HEAVY, top_level_only=True) == []


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(path: Path) -> list[str]:
    """Return all docstrings of a file, also those under constants."""
    texts = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, DOCUMENTED):
            texts.append(ast.get_docstring(node) or "")
        for statement in getattr(node, "body", []) if isinstance(node, DOCUMENTED) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts.append(value.value)
    return texts


def test_docstrings_begin_with_the_thing_they_describe() -> None:
    paths = [
        *modules("artmancer", "nodes", "tests", "benchmarks", "docs"),
        ROOT / "modal_comfy.py",
        ROOT / "__init__.py",
    ]
    questions = [
        f"{module_name(path)}: {text[:80]}"
        for path in paths
        for text in docstrings(path)
        if re.match(r"\s*(Of|What|Where|Whether|How)\b", text)
    ]
    assert questions == []


def test_every_module_has_a_docstring() -> None:
    paths = modules("artmancer", "nodes")
    assert [module_name(path) for path in paths if not ast.get_docstring(parsed(path))] == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function without its docstring."""
    whole = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return whole
    docstring = function.body[0]
    return whole - ((docstring.end_lineno or 0) - docstring.lineno + 1)


LISTS = {"define_schema", "add_parser"}
"""Functions that are one long list, which is read from top to bottom."""


def test_functions_are_short() -> None:
    long = [
        f"{module_name(path)}.{node.name}: {code_lines(node)} lines"
        for path in modules("artmancer", "nodes")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LISTS
        if code_lines(node) > 60
    ]
    assert long == []


def test_comfyuis_door_is_small_and_imports_no_torch() -> None:
    door = ROOT / "__init__.py"
    assert len(door.read_text().splitlines()) < 40
    probe = f"import sys, runpy; runpy.run_path({str(door)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_help_does_not_wait_for_torch() -> None:
    probe = "import sys, artmancer.cli as c; c.make_parser(); sys.exit('torch' in sys.modules)"
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
    assert len(NODES) == len(set(NODES))
    for name in NODES:
        page = ROOT / "web" / "docs" / f"{name}.md"
        picture = re.search(r"!\[.+\]\((.+)\)", page.read_text())
        assert picture and (page.parent / picture[1]).is_file(), name


def test_help_pages_name_templates_that_have_the_node() -> None:
    graphs = {path.stem: path.read_text() for path in (ROOT / "workflows").glob("*.json")}
    for name in NODES:
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        line = re.search(r"^Templates?: (.*?)\. \[", page, re.M) or ["", ""]
        named = re.findall(r"\*([^*]+)\*", line[1])
        titles = {title: [full for full in graphs if full.startswith(title)] for title in named}
        assert all(len(found) == 1 for found in titles.values()), (name, titles)
        listed = {full for found in titles.values() for full in found}
        if line[1].startswith("all"):
            listed = graphs.keys() - listed
        assert listed == {full for full, graph in graphs.items() if f'"{name}"' in graph}, name


def test_every_node_says_what_it_did_in_its_last_progress_text() -> None:
    """ComfyUI leaves the last text on the node, and a stage that is over would stay there."""
    for path in (ROOT / "nodes").rglob("*.py"):
        for block in ast.walk(parsed(path)):
            if isinstance(block, ast.With) and "node_progress()" in ast.unparse(block.items[0]):
                last = ast.unparse(block.body[-1])
                assert last.startswith("progress(1, 1, "), f"{path.name}:{block.lineno}: {last}"


def test_an_installed_package_has_every_module_and_every_graph() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in modules("artmancer")}
    assert set(setuptools["packages"]) == folders | {"artmancer.gateway.graphs"}
    assert setuptools["package-dir"]["artmancer.gateway.graphs"] == "workflows/api"
