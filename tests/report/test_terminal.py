"""What the terminal shows: exact plain lines, the panel at several widths, and terminals that misbehave."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count

import pytest
from rich.console import Console

from alignctl.report.closing import Figure, Outcome, closing_text, print_closing
from alignctl.report.console import stderr_console
from alignctl.report.figures import ASCII_LEVELS, Speed, duration, figure, printable, sparkline
from alignctl.report.live_panel import Progress, Series, draw
from alignctl.report.terminal import Panel, open_panel

PAIRS = Speed(1.9, "pairs")

TRAIN = {
    "loss": 0.69123,
    "rewards/margins": 0.0042,
    "rewards/accuracies": 0.5625,
    "lr": 1e-5,
    "grad_norm": 12.34,
}
HELD_OUT = {
    "loss": 0.6612,
    "rewards/accuracies": 0.71,
    "accuracy_logp": 0.6458,
    "gold/mean": 0.3125,
    "likelihood/chosen": -1.234,
    "likelihood/rejected": -1.5,
    "entropy/top10": 1.25,
    "displacement": 0.125,
}


@pytest.fixture(autouse=True)
def _ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")


def clock_of(step_seconds: float) -> Callable[[], float]:
    ticks = count()
    return lambda: next(ticks) * step_seconds


def pipe() -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    return stream, stderr_console(stream)


def tty(width: int) -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    return stream, Console(file=stream, force_terminal=True, width=width, height=40, legacy_windows=False)


def a_short_run(panel: Panel) -> None:
    panel.plan(["model  tiny", "data   demo: 64 pairs"])
    panel.working("reference log-probs", 0, 64)
    panel.working("reference log-probs", 64, 64)
    panel.evaluated(0, {**HELD_OUT, "loss": 0.6931})
    for step in range(1, 9):
        panel.train_step(step, {**TRAIN, "loss": 0.7 - 0.01 * step}, PAIRS, 3.14)
        if step == 4:
            panel.warn("3 pairs were truncated")
    panel.note("checkpoint step-000008")
    panel.evaluated(8, HELD_OUT)


def drawn(progress: Progress, width: int, ascii_only: bool = False) -> list[str]:
    """The panel's lines without colours."""
    console = Console(file=io.StringIO(), width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(draw(progress, width, ascii_only))
    return capture.get().splitlines()


def a_progress() -> Progress:
    progress = Progress("dpo tiny demo", 80, step=30, eta=112.0, speed=PAIRS, memory_gb=3.14)
    for name, value in HELD_OUT.items():
        progress.held_out[name] = Series([0, 25], [value, value + 0.1])
    for name, value in TRAIN.items():
        progress.train[name] = Series(list(range(1, 31)), [value * (1 + step / 30) for step in range(30)])
    return progress


# --- plain lines ---------------------------------------------------------------------------------------


def test_a_run_on_a_pipe_is_one_exact_line_per_event() -> None:
    stream, console = pipe()
    ticks = iter([0.0, 10.0, 11.6])
    with open_panel(console, "dpo", 80, clock=lambda: next(ticks)) as panel:
        panel.plan(["model  smollm2-135m", "data   demo"])
        panel.working("reference log-probs", 64, 64)
        panel.train_step(1, TRAIN, PAIRS, 3.1)
        panel.train_step(10, TRAIN, PAIRS, 3.1)
        panel.evaluated(25, HELD_OUT)
        panel.warn("loss rises")
        panel.note("checkpoint step-000025")
    expected = [
        "model  smollm2-135m",
        "data   demo",
        "step 1/80  loss 0.6912  margin 0.004  acc 0.56  lr 1e-05  grad 12.3  1.9 pairs/s",
        "step 10/80  loss 0.6912  margin 0.004  acc 0.56  lr 1e-05  grad 12.3  1.9 pairs/s  eta 0:12",
        "eval step 25  loss 0.6612  acc 0.71  acc_logp 0.65  gold 0.312  lik_chosen -1.234  entropy 1.250"
        "  displacement 0.12",
        "warning: loss rises",
        "checkpoint step-000025",
    ]
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == expected


def test_a_resumed_run_estimates_from_its_own_steps() -> None:
    stream, console = pipe()
    with open_panel(console, "dpo", 80, clock=clock_of(2.0)) as panel:
        panel.train_step(41, {}, Speed(0.034, "pairs"), 0.0)
        panel.train_step(42, {}, Speed(12.0, "pairs"), 0.0)
        panel.train_step(80, {}, Speed(12.0, "pairs"), 0.0)
    assert stream.getvalue() == (
        "step 41/80  0.034 pairs/s\nstep 42/80  12.0 pairs/s  eta 1:16\nstep 80/80  12.0 pairs/s\n"
    )


def test_a_long_preparation_speaks_now_and_then_and_a_short_one_not() -> None:
    stream, console = pipe()
    with open_panel(console, "dpo", 80, clock=clock_of(4.0)) as panel:
        for done in range(7):
            panel.working("reference log-probs", done * 100, 600)
        panel.working("answers", 0, 2)
        panel.working("answers", 2, 2)
    assert stream.getvalue().splitlines() == [
        "reference log-probs 300/600",
        "reference log-probs 600/600",
    ]


def test_a_long_sampling_tells_its_tokens_per_second() -> None:
    stream, console = pipe()
    with open_panel(console, "ppo", 80, clock=clock_of(6.0)) as panel:
        for done, tokens in ((0, 0), (3, 900), (7, 3000), (16, 4500)):
            panel.working("answers", done, 16, tokens)
        # The next round begins anew: 600 tokens in 6 seconds, not in 30.
        panel.working("answers", 0, 16, 0)
        panel.working("answers", 8, 16, 600)
        panel.working("answers", 9, 16, 600)
    assert stream.getvalue().splitlines() == [
        "answers 7/16  250 tokens/s",
        "answers 16/16  250 tokens/s",
        "answers 9/16  50.0 tokens/s",
    ]


def test_a_long_line_is_not_wrapped_on_a_pipe() -> None:
    stream, console = pipe()
    with open_panel(console, "dpo", 80) as panel:
        panel.note("x" * 500 + " [bold]not markup[/bold] :smile:")
    assert stream.getvalue() == "x" * 500 + " [bold]not markup[/bold] :smile:\n"


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR"])
def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    for stream, console in (pipe(), tty(80)):
        with open_panel(console, "dpo", 8, clock=clock_of(1.0)) as panel:
            a_short_run(panel)
        coloured = "\x1b[3" in stream.getvalue()
        assert coloured == (variable == "FORCE_COLOR")


def test_force_color_colours_a_log_and_makes_no_terminal_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream, console = pipe()
    with open_panel(console, "dpo", 8, clock=clock_of(1.0)) as panel:
        a_short_run(panel)
        panel.note("x" * 500)
    assert "\x1b[33mwarning: 3 pairs were truncated" in stream.getvalue()
    assert "\x1b[?25l" not in stream.getvalue()
    assert "x" * 500 in stream.getvalue()


# --- the live panel ------------------------------------------------------------------------------------


def test_the_panel_at_80_columns() -> None:
    lines = drawn(a_progress(), 80)
    assert {len(line) for line in lines} == {80}
    assert "dpo tiny demo" in lines[0]
    assert lines[1].startswith("│ step 30/80 ━")
    assert lines[1].endswith(" eta 1:52  1.9 pairs/s  3.1 GB │")
    body = [line.strip("│ ") for line in lines[3:-1]]
    assert body[0].split() == ["metric", "now", "start", "trend", "note"]
    assert [line.split("  ")[0] for line in body[1:]] == [
        "held out, step 25",
        "loss",
        "rewards/accuracies",
        "accuracy_logp",
        "gold/mean",
        "likelihood/chosen",
        "entropy/top10",
        "training, step 30",
        "loss",
        "rewards/margins",
    ]
    assert body[2].split() == ["loss", "0.7612", "0.6612", "▁█", "best", "0.6612", "at", "step", "0"]
    assert body[9].split()[:4] == ["loss", "1.3594", "0.6912", "▁▂▂▃▃▄▄▅▅▆▆▇▇█"]


@pytest.mark.parametrize("width", [48, 60, 72, 80, 100, 240])
def test_the_panel_fills_the_width_and_never_wraps(width: int) -> None:
    lines = drawn(a_progress(), width)
    assert {len(line) for line in lines} == {width}
    assert len(lines) == 15
    assert all(name in "\n".join(lines) for name in ("rewards/accuracies", "likelihood/chosen", "0.7612"))
    assert ("note" in lines[3]) == (width >= 72)


def test_a_preparation_has_a_bar_of_its_own_until_it_is_over() -> None:
    stream, console = tty(80)
    with open_panel(console, "dpo", 8, clock=clock_of(1.0)) as panel:
        panel.working("reference log-probs", 16, 64)
        assert "16/64" in stream.getvalue()
        panel.working("reference log-probs", 64, 64)
    assert "64/64" not in stream.getvalue()


def test_sampling_shows_its_tokens_per_second_where_there_is_room() -> None:
    for width, shown in ((100, True), (60, True), (48, False)):
        stream, console = tty(width)
        with open_panel(console, "ppo", 8, clock=clock_of(2.0)) as panel:
            panel.working("answers", 0, 16, 0)
            panel.working("answers", 3, 16, 900)
            assert "3/16" in stream.getvalue()
            assert ("450 tokens/s" in stream.getvalue()) == shown


def test_the_number_of_steps_may_become_known_late() -> None:
    for stream, console in (pipe(), tty(80)):
        with open_panel(console, "dpo", clock=clock_of(1.0)) as panel:
            panel.working("rows", 1, 2)
            panel.expect(8)
            panel.train_step(1, TRAIN, PAIRS, 1.0)
        assert "step 1/8" in stream.getvalue()


def test_a_panel_that_came_to_no_step_leaves_nothing_behind() -> None:
    for steps in (0, 1):
        stream, console = tty(80)
        with open_panel(console, "dpo", 8, clock=clock_of(1.0)) as panel:
            panel.working("rows", 1, 2)
            for step in range(steps):
                panel.train_step(step + 1, TRAIN, PAIRS, 1.0)
        erased = "\x1b[2K" in stream.getvalue().rpartition("\x1b[?25h")[2]
        assert erased == (steps == 0)


def test_work_without_steps_shows_its_own_bar_alone() -> None:
    stream, console = tty(80)
    with open_panel(console, "eval", clock=clock_of(1.0)) as panel:
        panel.plan(["models a, b"])
        panel.working("a: pairs", 16, 64)
        assert "16/64" in stream.getvalue()
    assert "step" not in stream.getvalue()
    assert "getting ready" in stream.getvalue()


@pytest.mark.parametrize("width", [48, 60, 80, 100])
def test_a_terminal_gets_the_panel_and_keeps_its_warnings(width: int) -> None:
    stream, console = tty(width)
    with open_panel(console, "dpo tiny demo", 8, clock=clock_of(1.0)) as panel:
        a_short_run(panel)
    shown = stream.getvalue()
    assert "warning: 3 pairs were truncated" in shown
    assert "step 8/8" in shown
    assert shown.index("\x1b[?25l") < shown.index("\x1b[?25h"), "the cursor comes back"


def test_the_cursor_comes_back_when_the_run_fails() -> None:
    stream, console = tty(80)
    with pytest.raises(ZeroDivisionError), open_panel(console, "dpo", 8) as panel:
        panel.train_step(1 // 0, TRAIN, Speed(1.0, "pairs"), 1.0)
    shown = stream.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_fast_loop_is_not_drawn_at_every_step() -> None:
    stream, console = tty(80)
    with open_panel(console, "dpo", 1000, clock=clock_of(0.001)) as panel:
        for step in range(1, 1001):
            panel.train_step(step, TRAIN, Speed(1000.0, "pairs"), 0.0)
    frames = stream.getvalue().count("╭")
    assert 5 <= frames <= 40


def test_without_held_out_rows_training_fills_the_panel() -> None:
    progress = a_progress()
    progress.held_out.clear()
    shown = "\n".join(drawn(progress, 80))
    assert "held out" not in shown
    assert "grad_norm" in shown
    assert "rewards/accuracies" in shown


# --- terminals that misbehave --------------------------------------------------------------------------


def test_ascii_takes_the_place_of_blocks_where_the_encoding_lacks_them() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii", errors="strict", write_through=True)
    console = Console(file=stream, force_terminal=True, width=80, height=40, legacy_windows=False)
    with open_panel(console, "dpo · smöl", 8, clock=clock_of(1.0)) as panel:
        a_short_run(panel)
        panel.warn("smörgås.jsonl has 3 odd rows")
    shown = buffer.getvalue().decode("ascii")
    assert "^" in shown
    assert "dpo ? sm?l" in shown
    assert "sm?rg?s.jsonl" in shown
    assert not console.quiet


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\x9bc\rd\ne") == "a?[31mb?c?d\ne"
    stream, console = pipe()
    with open_panel(console, "dpo", 8) as panel:
        panel.warn("row says \x1b]0;owned\x07")
    assert stream.getvalue() == "warning: row says ?]0;owned?\n"


@pytest.mark.parametrize("width", [0, 1, 2, 10, 47])
def test_a_terminal_of_hardly_any_width_gets_plain_lines(width: int) -> None:
    stream, console = tty(width)
    with open_panel(console, "dpo", 8, clock=clock_of(1.0)) as panel:
        a_short_run(panel)
    assert "╭" not in stream.getvalue()


@pytest.mark.parametrize("width", [0, 1, 2, 3, 7, 20, 47])
def test_a_window_made_tiny_while_the_panel_is_open_does_no_harm(width: int) -> None:
    stream, console = tty(80)
    with open_panel(console, "dpo", 8, clock=clock_of(1.0)) as panel:
        panel.evaluated(0, HELD_OUT)
        console.width = width
        a_short_run(panel)
    assert stream.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, console = tty(80)
    with open_panel(console, "dpo", 8) as panel:
        panel.train_step(1, {"loss": 0.5}, Speed(1.0, "pairs"), 0.0)
    assert "\x1b[?25l" not in stream.getvalue()
    assert "step 1/8  loss 0.5000  1.0 pairs/s" in stream.getvalue()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_broken_figures_are_shown_as_they_are(value: float) -> None:
    for _, console in (pipe(), tty(80)):
        with open_panel(console, "dpo", 8, clock=clock_of(1.0)) as panel:
            panel.evaluated(0, HELD_OUT)
            panel.evaluated(1, {"loss": value})
            panel.train_step(1, {"loss": value}, Speed(1.0, "pairs"), 0.0)
            panel.train_step(2, {"loss": 0.5}, Speed(1.0, "pairs"), 0.0)
    assert figure("loss", value) == format(value, ".4g")


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    console = stderr_console(stream)
    with open_panel(console, "dpo", 8) as panel:
        a_short_run(panel)
    assert console.quiet
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_log_does_not_end_the_run() -> None:
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    console = stderr_console(stream)
    with open_panel(console, "dpo", 8) as panel:
        a_short_run(panel)
    assert console.quiet
    with pytest.raises(OSError, match="No space"):
        stream.close()


PTY_RUN = """
import sys
from alignctl.report.console import stderr_console
from alignctl.report.figures import Speed
from alignctl.report.terminal import open_panel
with open_panel(stderr_console(), "dpo", 3) as panel:
    for step in (1, 2, 3):
        panel.train_step(step, {"loss": 1 / step}, Speed(1.0, "pairs"), 1.0)
print("results", sys.stderr.isatty())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_real_terminal_that_reports_no_size() -> None:
    # A fresh pseudo-terminal reports 0 columns and 0 lines.
    controller, terminal = os.openpty()
    run = subprocess.run(
        [sys.executable, "-c", PTY_RUN],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal, check=False, timeout=60,
    )  # fmt: skip
    shown = os.read(controller, 100_000).decode()
    os.close(terminal)
    os.close(controller)
    assert (run.returncode, run.stdout) == (0, b"results True\n")
    assert "step 3/3" in shown


# --- figures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 6, 5, 4, 3, 2, 1, 0], 8, "█▇▆▅▄▃▂▁"),
        ([0, 0, 1, 1, 2, 2, 3, 3], 4, "▁▃▆█"),
        ([5], 8, "▄"),
        ([0.3, 0.1 + 0.2, 0.3], 8, "▄▄▄"),
        ([-1, 1], 8, "▁█"),
        ([0, float("nan"), 7, float("inf")], 8, "▁█"),
        ([1, 2, 3], 0, ""),
        ([1, 2, 3], -4, ""),
        ([], 8, ""),
        (list(range(1000)), 3, "▁▄█"),
    ],
)
def test_sparkline(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


def test_sparkline_in_ascii() -> None:
    assert sparkline([0, 1, 2, 3, 4], 8, ASCII_LEVELS) == "_.-*^"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (112, "1:52"), (3599, "59:59"), (3725, "1:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 0.693147, "0.6931"),
        ("loss", 123456.0, "1.235e+05"),
        ("lr", 1e-5, "1e-05"),
        ("grad_norm", 12.0, "12.0"),
        ("rewards/accuracies", 0.5625, "0.56"),
        ("something/else", 3.14159, "3.142"),
    ],
)
def test_figure(name: str, value: float, text: str) -> None:
    assert figure(name, value) == text


@pytest.mark.parametrize(
    ("per_second", "words"),
    [(0.0344, "0.034 pairs/s"), (1.9, "1.9 pairs/s"), (12.0, "12.0 pairs/s"), (1234.5, "1234 pairs/s")],
)
def test_speed(per_second: float, words: str) -> None:
    assert Speed(per_second, "pairs").words == words


# --- the closing lines ---------------------------------------------------------------------------------


def a_figure(value: float, ci: tuple[float, float] | None = None) -> Figure:
    return {"value": value, "ci": ci, "n": 48}


HEADLINE = {
    "loss": {
        "start": a_figure(0.6931),
        "best": a_figure(0.5447, (0.51, 0.58)),
        "last": a_figure(0.5531, (0.51, 0.59)),
    },
    "likelihood/chosen": {
        "start": a_figure(-1.2, (-1.3, -1.1)),
        "best": a_figure(-1.3, (-1.4, -1.2)),
        "last": a_figure(-1.5, (-1.6, -1.4)),
    },
}
OUTCOME = Outcome("runs/dpo-demo/model", 50, "loss", 80, 192.3, chat=True)


def test_the_closing_lines_on_a_pipe() -> None:
    stream = io.StringIO()
    print_closing(Console(file=stream), HEADLINE, OUTCOME)
    assert stream.getvalue() == (
        "                   start                    best (step 50)           last (step 80)           n\n"
        "loss               0.6931                   0.5447 [0.5100, 0.5800]  0.5531 [0.5100, 0.5900]  48\n"
        "likelihood/chosen  -1.200 [-1.300, -1.100]  -1.300 [-1.400, -1.200]  -1.500 [-1.600, -1.400]  48\n"
        "[lo, hi]: 95 % interval\n"
        "\n"
        "model  runs/dpo-demo/model  (step 50, the lowest held-out loss)\n"
        "time   3:12 for 80 steps\n"
        "\n"
        "ask it something\n"
        "python - <<'END'\n"
        "from transformers import pipeline\n"
        'model = pipeline("text-generation", "runs/dpo-demo/model")\n'
        'answer = model([{"role": "user", "content": "Name three fruits."}], max_new_tokens=100)\n'
        'print(answer[0]["generated_text"][-1]["content"])\n'
        "END\n"
        "\n"
        "measure it\n"
        "alignctl eval runs/dpo-demo\n"
        "\n"
        "train on from it\n"
        "alignctl train model=runs/dpo-demo/model\n"
    )


@pytest.mark.parametrize(("width", "intervals"), [(100, True), (80, True), (60, False)])
def test_the_closing_table_fits_its_width(width: int, intervals: bool) -> None:
    table = closing_text(HEADLINE, OUTCOME, width).plain.split("\n\n")[0]
    assert max(len(line) for line in table.splitlines()) <= width
    assert ("[-1.400, -1.200]" in table) == intervals
    assert ("run.json" in table) != intervals


def test_the_closing_lines_without_held_out_pairs_or_template() -> None:
    headline = {"loss": {"start": a_figure(0.7), "best": None, "last": a_figure(0.5)}}
    outcome = Outcome("runs/a 'b'/model", 80, "last", 80, 5.0, chat=False)
    lines = closing_text(headline, outcome, 80).plain.splitlines()
    assert lines[1].split() == ["loss", "0.7000", "-", "0.5000", "48"]
    assert "model  runs/a 'b'/model  (step 80, the last step)" in lines
    assert 'print(answer[0]["generated_text"])' in lines
    assert lines[-1] == """alignctl train model='runs/a '"'"'b'"'"'/model'"""
    assert closing_text({}, outcome, 80).plain.startswith("model  runs/a")


def test_the_closing_lines_on_an_ascii_pipe_and_a_colour_terminal() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii", errors="strict", write_through=True)
    outcome = Outcome("runs/smörgås/model", 50, "loss", 80, 1.0, chat=True)
    print_closing(Console(file=stream), HEADLINE, outcome)
    assert b"runs/sm?rg?s/model" in buffer.getvalue()
    stream_of_tty, console = tty(100)
    print_closing(console, HEADLINE, OUTCOME)
    assert "\x1b[1m" in stream_of_tty.getvalue()
