"""The shape of the code, read from its syntax trees: who may import whom, and what nobody may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "alignctl"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports from a lower layer or from its own package; neighbours of one layer do not see each other.
LAYERS = (
    {"errors", "records"},
    {"config"},
    {"data", "models", "algos"},
    {"train", "evaluate"},
    {"report"},
    {"runners"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}

UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "imp"}
CODE_FROM_TEXT = {"eval", "exec", "compile", "__import__"}
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
SHELL_CALLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(path: Path) -> str:
    """`train` for alignctl/train/step.py, `config` for alignctl/config.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever in the file: `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`torch.load` for the expression torch.load; empty for anything that is not a chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of alignctl for every import of the package's own; `from alignctl import __version__`
    reaches no part."""
    for line, name in imported_modules(tree_of(path)):
        parts = name.split(".")
        if parts[0] == "alignctl" and len(parts) > 1 and parts[1] != "__version__":
            yield line, parts[1]


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__"} == set(LAYER_OF)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    imports = list(own_imports(path))
    if part == "__init__":
        assert imports == [], "the package itself imports nothing, so `import alignctl` is free"
        return
    upward = [
        f"line {line}: {part} imports {other}"
        for line, other in imports
        if other != part and LAYER_OF[other] >= LAYER_OF[part]
    ]
    assert upward == []


def faults(tree: ast.Module) -> list[str]:
    found = [
        f"line {line}: imports {name}"
        for line, name in imported_modules(tree)
        if name.split(".")[0] in UNPICKLING
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if called in CODE_FROM_TEXT | BY_NAME | SHELL_CALLS | {"torch.load", "torch.save"}:
            found.append(f"line {node.lineno}: calls {called}")
        if any(word.arg == "shell" and not _is_false(word.value) for word in node.keywords):
            found.append(f"line {node.lineno}: shell=")
        if any(word.arg == "trust_remote_code" and not _is_false(word.value) for word in node.keywords):
            found.append(f"line {node.lineno}: trust_remote_code=")
    return found


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_unpickles_runs_text_or_reaches_attributes_by_name(path: Path) -> None:
    assert faults(tree_of(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.save(state, path)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(words, shell=True)",
        "os.system(text)",
        "getattr(config, name)",
        "hasattr(model, 'config')",
        "setattr(model, 'x', 1)",
        "AutoModel.from_pretrained(path, trust_remote_code=wanted)",
    ],
)
def test_the_check_sees_each_fault(line: str) -> None:
    assert len(faults(ast.parse(line))) == 1


def test_the_check_leaves_ordinary_code_alone() -> None:
    assert faults(ast.parse("model.eval(); re.compile(p); f(shell=False, trust_remote_code=False)")) == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert {path.stem for path in MODULES} & VAGUE_NAMES == set()
