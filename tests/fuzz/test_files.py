"""Files of models, adapters, checkpoints and runs, mutated: read or refused by name, without a hang."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignctl.cli.compose import load
from alignctl.cli.options import open_conf
from alignctl.config import LoraAdapter, NoAdapter, TinyModel, TrainConfig, request_hash
from alignctl.errors import AlignctlError, RunDirectoryError, SetupError
from alignctl.models.load import (
    Source,
    context_length,
    load_start,
    load_tokenizer,
    locate_path,
    vocabulary_size,
)
from alignctl.models.soup.members import open_member
from alignctl.models.tiny import tiny_model, tiny_tokenizer
from alignctl.train.checkpoint import load_newest, save_checkpoint
from alignctl.train.run_directory import open_run
from fuzz.mutations import fuzz, mutated, odd_json
from fuzz.servant import Servant

TINY = TinyModel(kind="tiny", name="tiny", seed=0, layers=1, hidden=16, lr=1e-3)
LORA = LoraAdapter(kind="lora", r=2, alpha=4.0, dropout=0.0, targets="all-linear", lr_scale=1.0)
REQUEST = "0" * 16
HUGE = (
    10**5,
    2**20,
    2**24,
    2**28,
    10**10,
    10**15,
    [10**9] * 3,
    "llama",
    "gpt2",
    "mamba",
    "(a+)+$",
    ".*" * 5,
)


def serve(read: Callable[[Path], object], whole: Path, expected: type[AlignctlError]) -> Servant:
    """A servant that puts an example, NAME NUL BYTES, in place of a file of a directory and reads that."""

    def attempt(example: bytes) -> None:
        name, _, data = example.partition(b"\0")
        spoilt = whole.with_name(f"{whole.name}-spoilt")
        shutil.rmtree(spoilt, ignore_errors=True)
        shutil.copytree(whole, spoilt)
        (spoilt / name.decode()).write_bytes(data)
        try:
            read(spoilt)
        except expected as error:
            told = error
        else:
            return
        assert str(spoilt) in told.message, told.message
        assert len(told.render()) < 4000
        assert told.render().replace("\n", "").isprintable()

    return Servant(attempt)


# --- a model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, its weights in two files."""
    home = tmp_path_factory.mktemp("model") / "model"
    tiny_model(TINY).save_pretrained(home, max_shard_size="12KB")
    tiny_tokenizer().save_pretrained(home)
    return home


def open_model(directory: Path) -> None:
    source = locate_path(str(directory))
    load_tokenizer(source)
    vocabulary_size(source)
    context_length(source)
    load_start(source, NoAdapter(kind="none"), seed=0)


@pytest.fixture(scope="module")
def read_model(model: Path) -> Iterator[Servant]:
    servant = serve(open_model, model, SetupError)
    yield servant
    servant.stop()


def files_of(directory: Path, ending: str) -> list[str]:
    return sorted(path.name for path in directory.glob(f"*{ending}"))


def test_the_model_is_sound(model: Path, adapter: Path) -> None:
    open_model(model)
    open_model(adapter)
    assert len(files_of(model, ".safetensors")) > 1
    expected = {"config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"}
    assert expected <= {*files_of(model, ".json")}


@fuzz(60)
@given(data=st.data())
def test_odd_values_in_a_config(data: st.DataObject, read_model: Servant, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    odd = data.draw(odd_json([config], extra=HUGE))
    read_model(b"config.json\0" + odd.encode("utf-8", "surrogatepass"))


@fuzz(50)
@given(data=st.data())
def test_odd_values_beside_the_weights(data: st.DataObject, read_model: Servant, model: Path) -> None:
    name = data.draw(st.sampled_from([one for one in files_of(model, ".json") if one != "config.json"]))
    sound = json.loads((model / name).read_text())
    odd = data.draw(odd_json([sound], extra=(*HUGE, "../../x", "/dev/zero")))
    read_model(name.encode() + b"\0" + odd.encode("utf-8", "surrogatepass"))


@fuzz(50)
@given(data=st.data())
def test_mutated_bytes_of_a_model(data: st.DataObject, read_model: Servant, model: Path) -> None:
    names = [*files_of(model, ".json"), *files_of(model, ".safetensors"), *files_of(model, ".jinja")]
    name = data.draw(st.sampled_from(names))
    read_model(name.encode() + b"\0" + data.draw(mutated([(model / name).read_bytes()])))


@fuzz(50)
@given(data=st.data())
def test_odd_headers_of_weights(data: st.DataObject, read_model: Servant, model: Path) -> None:
    name = files_of(model, ".safetensors")[0]
    read_model(name.encode() + b"\0" + data.draw(odd_header((model / name).read_bytes())))


@st.composite
def odd_header(draw: Callable[..., Any], sound: bytes) -> bytes:
    """A safetensors file whose header has odd values, at times with a length that lies."""
    length = int.from_bytes(sound[:8], "little")
    header = draw(odd_json([json.loads(sound[8 : 8 + length])], extra=("F8_E4M3", "I64", [2**62, 2]), most=2))
    text = header.encode("utf-8", "surrogatepass")
    claimed = draw(st.sampled_from((len(text), len(text), len(text), 0, length, 2**40, 2**64 - 1)))
    return claimed.to_bytes(8, "little") + text + sound[8 + length :]


# --- an adapter ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on that model."""
    home = tmp_path_factory.mktemp("adapter") / "adapter"
    load_start(Source(str(model), None), LORA, seed=0).model.save_pretrained(str(home))
    return home


@pytest.fixture(scope="module")
def read_adapter(adapter: Path) -> Iterator[Servant]:
    servant = serve(open_model, adapter, SetupError)
    yield servant
    servant.stop()


@fuzz(50)
@given(data=st.data())
def test_odd_values_in_an_adapter(data: st.DataObject, read_adapter: Servant, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    odd = data.draw(odd_json([config], extra=(*HUGE, "pissa", "LOHA", "VERA", "PROMPT_TUNING")))
    read_adapter(b"adapter_config.json\0" + odd.encode("utf-8", "surrogatepass"))


@fuzz(20)
@given(data=st.data())
def test_odd_headers_of_an_adapter(data: st.DataObject, read_adapter: Servant, adapter: Path) -> None:
    sound = (adapter / "adapter_model.safetensors").read_bytes()
    read_adapter(b"adapter_model.safetensors\0" + data.draw(odd_header(sound)))


@pytest.fixture(scope="module")
def read_member(model: Path) -> Iterator[Servant]:
    servant = serve(lambda path: open_member(str(path)), model, SetupError)
    yield servant
    servant.stop()


@fuzz(50)
@given(data=st.data())
def test_a_member_of_a_soup(data: st.DataObject, read_member: Servant, model: Path) -> None:
    name = data.draw(st.sampled_from(["config.json", "model.safetensors.index.json"]))
    odd = data.draw(
        odd_json([json.loads((model / name).read_text())], extra=("../x.safetensors", "x.safetensors"))
    )
    read_member(name.encode() + b"\0" + odd.encode("utf-8", "surrogatepass"))


# --- a checkpoint and a run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one run."""
    home = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in (1, 2):
        tensors = {"model": {"w": torch.arange(6.0) + step}, "optimizer": {"m": torch.zeros(2, 3)}}
        state = {"step": step, "offsets": {"metrics.jsonl": 12}, "lr": 0.5}
        save_checkpoint(home, step, tensors, state, request=REQUEST, keep=2)
    return home


def newest(directory: Path) -> None:
    """What is loaded is what was saved, whichever of the two it is."""
    found = load_newest(directory, request=REQUEST)
    assert found is not None
    assert found.state["step"] == found.step
    assert found.tensors("model")["w"].tolist() == [found.step + place for place in range(6)]


@pytest.fixture(scope="module")
def read_checkpoints(checkpoints: Path) -> Iterator[Servant]:
    servant = serve(newest, checkpoints, RunDirectoryError)
    yield servant
    servant.stop()


@fuzz(100)
@given(data=st.data())
def test_a_checkpoint_is_whole_or_passed_over(
    data: st.DataObject, read_checkpoints: Servant, checkpoints: Path
) -> None:
    name = data.draw(st.sampled_from(files_of(checkpoints / "step-000002", "")))
    sound = (checkpoints / "step-000002" / name).read_bytes()
    spoilt = mutated([sound])
    if name.endswith(".json"):
        spoilt = st.one_of(
            spoilt, odd_json([json.loads(sound)]).map(lambda text: text.encode("utf-8", "surrogatepass"))
        )
    read_checkpoints(f"step-000002/{name}".encode() + b"\0" + data.draw(spoilt))


def config() -> TrainConfig:
    found = load(open_conf(None), ["model=tiny", "dataset=demo"])
    assert isinstance(found, TrainConfig)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unfinished run."""
    home = tmp_path_factory.mktemp("runs") / "run"
    with open_run(home, config(), ["model=tiny"], ["alignctl"]) as opened:
        opened.metrics.append({"step": 1})
    return home


@pytest.fixture(scope="module")
def read_run(run: Path) -> Iterator[Servant]:
    asked = config()

    def go_on(directory: Path) -> None:
        with open_run(directory, asked, [], []) as opened:
            assert opened.record["request"] == request_hash(asked)
            opened.note_resume(1)
            opened.warn("odd")

    servant = serve(go_on, run, RunDirectoryError)
    yield servant
    servant.stop()


@fuzz(100)
@given(data=st.data())
def test_the_record_of_a_run(data: st.DataObject, read_run: Servant, run: Path) -> None:
    name = data.draw(st.sampled_from(["run.json", "run.json", "config.yaml", ".lock"]))
    sound = (run / name).read_bytes()
    spoilt = mutated([sound])
    if name == "run.json":
        odd = odd_json([json.loads(sound)], extra=("failed", "done", "running", 2))
        spoilt = st.one_of(spoilt, odd.map(lambda text: text.encode("utf-8", "surrogatepass")))
    read_run(name.encode() + b"\0" + data.draw(spoilt))
