"""Imported once by the process that all commands are forked from: everything imported, and used once.

Half of a tiny run's time goes into what torch and the imports do for the first time in a process. One step
of training here spares it every command; commands begin as copies of a process that has done that.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO

from alignctl.cli import main

TINY = (
    *("model=tiny", "model.layers=1", "model.hidden=32", "hardware=cpu", "hardware.threads=1"),
    *("dataset.pairs=8", "dataset.eval_pairs=4", "dataset.gold_samples=2", "eval.max_new_tokens=2"),
    *("train.batch_size=2", "train.steps=1"),
)

for name in ("runners.evaluation", "runners.soup", "runners.soup_search"):
    import_module(f"alignctl.{name}")
with (
    tempfile.TemporaryDirectory() as place,
    chdir(place),
    redirect_stdout(StringIO()),
    redirect_stderr(StringIO()),
):
    os.environ["ALIGNCTL_CACHE"] = f"{place}/cache"
    main(["train", *TINY, "out=run"])
    del os.environ["ALIGNCTL_CACHE"]
