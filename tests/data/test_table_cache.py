"""Tables on disk: found again by content, made anew when anything that matters differs or is damaged."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignctl.data.preferences import load_preferences
from alignctl.data.table import arrays
from alignctl.data.tabulation import rules_hash
from alignctl.errors import SetupError
from alignctl.models.tiny import TEMPLATE, tiny_tokenizer


def many(n):
    return [
        {"prompt": f"question {k}", "chosen": f"yes {k} é", "rejected": f"no {k}", "subset": "ab"[k % 2]}
        for k in range(n)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Counted:
    """The encoder of a renderer, and how many texts it was given."""

    def __init__(self, encode):
        self.encode, self.texts = encode, 0

    def __call__(self, texts):
        self.texts += len(texts)
        return self.encode(texts)


@pytest.fixture
def load(workshop, tmp_path):
    """Reads a data set; returns it with the number of texts that were encoded for it."""

    def read(config, *, seed=0, kind="pairs", **changes):
        made = workshop(config, **{"cache": tmp_path / "cache", **changes})
        counted = Counted(made.renderer.encode)
        made = replace(made, renderer=replace(made.renderer, encode=counted))
        return load_preferences(config, made, seed=seed, kind=kind), counted.texts

    return read


def kept(tmp_path) -> list[Path]:
    return sorted((tmp_path / "cache" / "data").glob("*"))


def same(one, other) -> bool:
    """Whether two data sets are the same to the last bit."""
    facts = [arrays(data.pool.facts) for data in (one, other)]
    rows = [list(data.pool.rows(np.arange(len(data.pool)))) for data in (one, other)]
    ids = [
        [(e.id, e.prompt.tobytes(), *(ids.tobytes() for ids in e.branches), e.truncated) for e in examples]
        for examples in (data.pool.examples(np.arange(len(data.pool))) for data in (one, other))
    ]
    splits = [(data.train.tolist(), data.held_out.tolist(), data.bad, data.warnings) for data in (one, other)]
    alike = all(np.array_equal(facts[0][name], facts[1][name]) for name in facts[0])
    names = [data.pool.facts.subset_names for data in (one, other)]
    return (
        alike and rows[0] == rows[1] and ids[0] == ids[1] and splits[0] == splits[1] and names[0] == names[1]
    )


def test_a_second_run_encodes_nothing_and_finds_the_same_to_the_last_bit(dataset, load, tmp_path):
    rows = many(700)
    rows[5]["chosen"] = ""
    rows[600]["rejected"] = "<|im_end|>"
    config = dataset(write(tmp_path / "rows.jsonl", rows), on_bad="drop", eval_size=0.1)
    made, encoded = load(config)
    # The prompt alone, and with each answer; nothing for the two rows that fail before that.
    assert encoded == 3 * 698
    (file,) = kept(tmp_path)
    written = file.stat().st_mtime_ns
    found, encoded = load(config)
    assert encoded == 0
    assert same(made, found)
    assert len(found.bad) == 2
    assert ([table.cached for table in made.pool.tables], [table.cached for table in found.pool.tables]) == (
        [False],
        [True],
    )
    assert (kept(tmp_path), file.stat().st_mtime_ns) == ([file], written)


def flipped(share):
    """Turns one bit, so far into the content."""

    def flip(content):
        place = min(len(content) - 1, int(share * len(content)))
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return flip


DAMAGE = {
    **{f"flipped at {share}": flipped(share) for share in (0.0, 0.01, 0.3, 0.6, 0.9, 0.97, 0.99, 1.0)},
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "a few bytes": lambda content: content[-20:],
    "appended": lambda content: content + b"x",
    "a hole": lambda content: content[:1000] + bytes(500) + content[1500:],
    "something else": lambda content: b"not a table, but as long as one might be" * 50,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_noticed_and_made_anew(dataset, load, tmp_path, damage):
    config = dataset(write(tmp_path / "rows.jsonl", many(60)))
    made, encoded = load(config)
    (file,) = kept(tmp_path)
    content = file.read_bytes()
    # The tables of `made` go on reading what they have open.
    file.unlink()
    file.write_bytes(damage(content))
    again, encoded_again = load(config)
    assert encoded_again == encoded
    assert same(made, again)
    assert file.read_bytes() == content
    assert load(config)[1] == 0


MATTERS = [
    {"limit": 50},
    {"soft_labels": True, "columns": {"p_chosen": "p"}},
    {"score_scale": 2.0},
    {"min_score_ratio": 2.0},
    {"max_pairs_per_prompt": 3},
    {"format": "plain"},
    {"allow_empty_prompt": True},
    {"allow_control_tokens": True},
    {"min_response_tokens": 2},
    {"columns": {"weight": "w"}},
    {"columns": {"subset": "s"}},
]


@pytest.mark.parametrize("changes", MATTERS, ids=str)
def test_every_setting_that_decides_rows_makes_a_table_of_its_own(dataset, load, tmp_path, changes):
    rows = [row | {"p": 0.5, "w": 2.0, "s": "z"} for row in many(60)]
    config = dataset(write(tmp_path / "rows.jsonl", rows))
    load(config)
    columns = {"columns": config.columns.model_dump() | changes.get("columns", {})}
    changed = dataset(config.path, **(changes | columns))
    assert load(changed)[1] > 0
    assert len(kept(tmp_path)) == 2
    assert load(config)[1] == 0


def test_limits_tokenizer_template_kind_and_content_make_tables_of_their_own(dataset, load, tmp_path):
    config = dataset(write(tmp_path / "rows.jsonl", many(60)))
    load(config)
    template = tiny_tokenizer()
    template.chat_template = TEMPLATE.replace("\n", "\n ", 1)
    longer = tiny_tokenizer()
    longer.add_tokens(["question"])
    ways = [
        {"max_length": 300},
        {"max_prompt": 40},
        {"vocabulary": 50_000},
        {"tokenizer": template},
        {"tokenizer": longer},
        {"kind": "answers"},
        {"kind": "prompts"},
    ]
    for number, changes in enumerate(ways, start=2):
        assert load(config, **changes)[1] > 0, changes
        assert len(kept(tmp_path)) == number
    write(Path(config.path), [*many(59), many(1)[0] | {"prompt": "other"}])
    assert load(config)[1] > 0
    assert len(kept(tmp_path)) == len(ways) + 2


def test_what_only_chooses_among_rows_finds_the_table(dataset, load, tmp_path):
    path = write(tmp_path / "rows.jsonl", many(60))
    load(dataset(path))
    copy = write(tmp_path / "copy.jsonl", many(60))
    for config in (
        dataset(path, eval_size=0.5),
        dataset(path, on_bad="drop", max_bad=0.0),
        dataset(path, prompts=str(path), eval_path=None),
        dataset(copy),
    ):
        data, encoded = load(config, seed=3)
        assert encoded == 0
        assert data.pool.id_at(0) == f"{config.path}:1"
    assert len(kept(tmp_path)) == 1


def test_a_table_made_while_dropping_still_names_its_bad_rows_as_errors(dataset, load, tmp_path):
    rows = many(20)
    rows[3]["chosen"] = ""
    path = write(tmp_path / "rows.jsonl", rows)
    load(dataset(path, on_bad="drop"))
    with pytest.raises(Exception, match="1 row cannot be used") as caught:
        load(dataset(path))
    assert caught.value.rows[0].text == f"{path}:4 chosen: empty"


def test_a_file_deleted_while_it_is_used_goes_on_being_read(dataset, load, tmp_path):
    config = dataset(write(tmp_path / "rows.jsonl", many(1200)))
    made, _ = load(config)
    found, _ = load(config)
    for file in kept(tmp_path):
        file.unlink()
    assert same(made, found)


def test_another_rule_is_another_name(tmp_path):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for directory, code in ((one, "a = 1\n"), (two, "a = 1\n"), (three, "a = 2\n")):
        directory.mkdir()
        (directory / "rules.py").write_text(code)
    assert rules_hash(one) == rules_hash(two) != rules_hash(three)


# --- written whole or not at all -----------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
import yaml
from alignctl.config import FileDataset
from alignctl.data.preferences import load_preferences, open_workshop
from alignctl.models.tiny import tiny_tokenizer

usual = yaml.safe_load(Path(sys.argv[1]).read_text()) | {"path": sys.argv[2], "eval_size": 0}
config = FileDataset.model_validate(usual)

def report(what, done, total):
    if done > 2800 and sys.argv[4] == "stop":
        print("half", flush=True)
        time.sleep(60)

workshop = open_workshop(
    config, tiny_tokenizer(), vocabulary=1000, max_length=100_000, max_prompt=50_000,
    cache=Path(sys.argv[3]), report=report,
)
data = load_preferences(config, workshop, seed=0, kind="pairs")
print(len(data.train), flush=True)
"""
FILE_YAML = Path(__file__).parents[2] / "conf" / "dataset" / "file.yaml"


def child(tmp_path, path, mode, **options) -> subprocess.Popen:
    words = [
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        str(FILE_YAML),
        str(path),
        str(tmp_path / "cache"),
        mode,
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_used(dataset, load, tmp_path):
    path = write(tmp_path / "rows.jsonl", many(3000))
    with child(tmp_path, path, "stop") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    (left,) = kept(tmp_path)
    assert left.name.startswith(".tmp-")
    assert left.stat().st_size > 0
    data, encoded = load(dataset(path))
    assert (len(data.train), encoded) == (3000, 9000)
    assert load(dataset(path))[1] == 0
    # Another process could still be at it; a day later nobody is.
    assert left.exists()
    yesterday = time.time() - 90_000
    os.utime(left, (yesterday, yesterday))
    load(dataset(path, limit=10))
    assert not left.exists()


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    path = write(tmp_path / "rows.jsonl", many(3000))
    limited = child(
        tmp_path, path, "go", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    )
    _, errors = limited.communicate()
    assert f"rows cannot be kept in {tmp_path}/cache/data: File too large" in errors
    assert kept(tmp_path) == []


def test_an_interruption_leaves_nothing(dataset, load, tmp_path):
    config = dataset(write(tmp_path / "rows.jsonl", many(3000)))

    def report(what, done, total):
        if done > 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(config, report=report)
    assert kept(tmp_path) == []


def test_a_cache_that_is_no_directory_is_a_setup_error(dataset, load, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(SetupError, match="rows cannot be kept in"):
        load(dataset(write(tmp_path / "rows.jsonl", many(3))))


# --- progress and memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_progress_rises_to_its_end_and_guesses_the_number_of_rows(dataset, load, tmp_path, name):
    import gzip

    content = "".join(json.dumps(row) + "\n" for row in many(3000)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    calls = []
    load(dataset(tmp_path / name), report=lambda *told: calls.append(told))
    done = [told[1] for told in calls]
    assert done == sorted(done)
    assert calls[-1][1:] == (3000, 3000)
    assert len(calls) > 8
    assert all(now < total for _, now, total in calls[:-1])
    assert all(abs(total - 3000) < 30 for _, _, total in calls[:-1])


MEMORY = """
import json, resource, sys
from pathlib import Path
import numpy as np, yaml
from alignctl.config import FileDataset
from alignctl.data.preferences import load_preferences, open_workshop
from alignctl.models.tiny import tiny_tokenizer

usual = yaml.safe_load(Path(sys.argv[1]).read_text()) | {"eval_size": 0.1}
home = Path(sys.argv[2])
peaks = []
for number, rows in enumerate((2500, 2500, 10_000)):
    path = home / f"{number}.jsonl"
    with path.open("w") as file:
        for row in range(rows):
            sides = {"chosen": f"{row:05} " * 50, "rejected": f"{row:05}x" * 50}
            fields = {"prompt": f"{number} {row}", **sides}
            file.write(json.dumps(fields) + "\\n")
    config = FileDataset.model_validate(usual | {"path": str(path)})
    workshop = open_workshop(
        config, tiny_tokenizer(), vocabulary=1000, max_length=100_000, max_prompt=50_000,
        cache=home, report=lambda *told: None,
    )
    data = load_preferences(config, workshop, seed=0, kind="pairs")
    tokens = sum(example.tokens for example in data.pool.examples(data.train))
    assert tokens > 0.9 * rows * 500
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(peaks[2] - peaks[1])
"""


@pytest.mark.slow
@pytest.mark.long
def test_memory_hardly_grows_with_the_number_of_rows(tmp_path):
    """A row here is some 0.6 kB of text and 2.3 kB of ids: 7,500 more of them take 22 MB if they are held,
    and more as objects."""
    words = [sys.executable, "-c", MEMORY, str(FILE_YAML), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16e6
