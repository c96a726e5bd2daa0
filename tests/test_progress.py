import io
import re
import time

import pytest
from rich.console import Console

from sogclr.progress import Progress, clock, fitting, rounded


def test_a_callback_reports_now_and_then_where_there_is_no_terminal(capsys):
    with Progress(every=0.0) as progress:
        report = progress.callback("reading images")
        for done in (1, 2, 3):
            report(done, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()] == [f"reading images {k}/3" for k in (1, 2, 3)]


def test_quiet_shows_nothing(capsys):
    progress = Progress(quiet=True, every=0.0)
    progress.info("a line")
    progress.callback("reading")(1, 1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_line_keeps_steps_and_time_and_what_else_fits(width):
    progress, screen = Progress(), io.StringIO()
    progress.console = Console(file=screen, force_terminal=True, width=width, color_system=None, soft_wrap=True)
    progress.start("training", 12_800)
    time.sleep(0.05)
    progress.advance(1234, 12_800, "205 images/s, 4% waiting for data, objective -0.1637")
    progress.stop()
    last = re.split(r"[\r\n]|\x1b\[[0-9?]*[A-Za-z]", screen.getvalue())
    line = next(part for part in reversed(last) if "training" in part)
    assert len(line) <= width
    assert re.match(r"training \S+ +1234/12800 \d:\d\d:\d\d ETA (\d+|-):(\d\d|--):(\d\d|--)", line), line
    assert ("objective -0.1637" in line) == (width == 200)
    assert "…" not in line


def test_parts_of_a_note_go_from_the_last_on():
    assert [fitting("a b, cd, ef", n) for n in (20, 10, 8, 3, 2, -5)] == [
        "a b, cd, ef",
        "a b, cd",
        "a b, cd",
        "a b",
        "",
        "",
    ]


def test_epochs_are_rounded():
    assert [rounded(e) for e in (0.0350877, 3.0, 2.5, 10.0, 0)] == ["0.04", "3", "2.5", "10", "0"]


def test_a_clock_has_hours_where_it_needs_them():
    assert [clock(s) for s in (0, 62.6, 3723)] == ["0:00", "1:03", "1:02:03"]
