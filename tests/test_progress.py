from sogclr.progress import Progress, clock


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


def test_a_clock_has_hours_where_it_needs_them():
    assert [clock(s) for s in (0, 62.6, 3723)] == ["0:00", "1:03", "1:02:03"]
