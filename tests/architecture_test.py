"""What may import what, as docs/architecture.md draws it; imports inside functions count too."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# A stage imports only from itself and from the lines above its own, so `selection`, for one,
# imports constants and hashing alone. `import ofb_tf` is for the stages below training.
ORDER = (
    {"constants", "checks", "version"},
    {"hashing", "tables", "pictures"},
    {"records", "selection", "datasets", "testing"},
    {"transforms", "serving"},
    {"streaming"},
    {"training", "evaluation"},
    {"ofb_tf"},
    {"experiments", "beam"},
    {"cli", "tfx_components"},
    {"benchmarks"},
)
LEVEL = {stage: level for level, stages in enumerate(ORDER) for stage in stages}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("ofb_tf", "tfx_components", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
}


def imports(module):
    """(module, name or "") for every import of a module of this repository."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            for name in (alias.name for alias in node.names):
                inner = f"{node.module}.{name}"
                yield (inner, "") if inner in FILES else (node.module, name)


def stage(module):
    package, *inner = module.split(".")
    return inner[0] if package == "ofb_tf" and inner else package


@pytest.mark.parametrize("module", [module for module in FILES if module != "ofb_tf"])
def test_imports_go_down_and_leave_private_names_alone(module):
    for imported, name in imports(module):
        if stage(imported) != stage(module):
            assert LEVEL[stage(imported)] < LEVEL[stage(module)], imported
        assert not name.startswith("_") or name.startswith("__"), f"{imported}.{name}"


def test_no_cycles_among_modules():
    graph = {module: {imported for imported, _ in imports(module)} for module in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # its CycleError names the cycle
