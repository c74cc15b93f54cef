"""Imports point downwards: doors, stages, engine, mathematics, regions, data. No stage imports another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wsseg_ray"
LAYERS = [
    ["__main__", "cli"],
    ["api", "serve"],
    ["networks", "labelling", "doctor", "plan", "proposal_page", "replay", "reproduce", "status"],
    ["network_file"],
    ["pipeline", "summary", "choices"],
    ["cleaning"],
    ["stages"],
    ["engine"],
    ["segmentation", "hcp", "refinement", "supervision", "evaluation", "backbones", "proposals"],
    ["outputs"],
    ["datasets", "report"],
    ["sources"],
    ["lease"],
    ["storage", "console"],
    ["tables", "recipe"],
    ["registry", "errors"],
]
LAYER = {name: place for place, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(module: str) -> int:
    """The layer of a module of the package; the package itself is on top: it names what it shows when it is asked."""
    name = module.split(".")[1] if "." in module else "__main__"
    return LAYER[name]


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere but for the type checker alone."""
    found = set()
    todo = list(ast.parse(file.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                is_module = PACKAGE.parent.joinpath(*below.split(".")).with_suffix(".py").exists()
                is_package = PACKAGE.parent.joinpath(*below.split("."), "__init__.py").exists()
                found.add(below if is_module or is_package else node.module)
        todo += ast.iter_child_nodes(node)
    return {name for name in found if name and name.split(".")[0] == "wsseg_ray"}


def test_every_module_has_a_layer():
    tops = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert tops - {"__init__"} == set(LAYER)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_point_downwards(file):
    """Within a layer of the mathematics too: its packages import what lies to the right of them, or below."""
    own = module_of(file)
    wrong = {name for name in imports(file) if name != "wsseg_ray" and layer(name) < layer(own)}
    assert wrong == set()


def test_the_packages_of_the_mathematics_have_no_circle():
    """`segmentation` may build on `backbones`, so `backbones` must not build on `segmentation`."""
    names = next(names for names in LAYERS if "hcp" in names)
    edges = {name: set() for name in names}
    for file in FILES:
        own = module_of(file).split(".")
        if len(own) > 1 and own[1] in edges:
            edges[own[1]] |= {name.split(".")[1] for name in imports(file) if "." in name} & set(names) - {own[1]}
    while edges:
        free = {name for name, needs in edges.items() if not needs & set(edges)}
        assert free, f"a circle among {edges}"
        edges = {name: needs for name, needs in edges.items() if name not in free}


def stage_modules() -> list[str]:
    """Those that hold a stage of their own."""
    found = []
    for file in sorted((PACKAGE / "stages").glob("*.py")):
        names = [target.id for node in ast.parse(file.read_text()).body for target in targets(node)]
        if "STAGE" in names:
            found.append(module_of(file))
    return found


def targets(node: ast.stmt) -> list[ast.Name]:
    return [target for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]


def test_a_stage_imports_no_other():
    modules = stage_modules()
    assert len(modules) == 10
    for module in modules:
        file = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
        assert imports(file) & set(modules) <= {module}, module
    helpers = {module_of(file) for file in (PACKAGE / "stages").glob("*.py")} - set(modules)
    for module in helpers - {"wsseg_ray.stages"}:
        file = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
        assert not imports(file) & set(modules), f"{module} is for several stages: it must not know one of them"


def test_doors_and_the_pipeline_name_no_stage():
    """They go over the stages of a recipe."""
    for file in PACKAGE.glob("*.py"):
        assert not imports(file) & set(stage_modules()), file.name


def test_ray_is_imported_by_its_runner_alone():
    for file in FILES:
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        uses = any(name.split(".")[0] == "ray" for name in names)
        assert uses == (module_of(file) == "wsseg_ray.engine.ray_runner"), file
