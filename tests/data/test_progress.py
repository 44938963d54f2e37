"""The progress of a download, on a terminal and elsewhere."""

import io
import re
import sys

import pytest

from tasks.data import progress

MB = 1_000_000


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_at_each_tenth_with_rate_and_time_left():
    logged, clock = list[str](), iter(range(1000))
    report = progress.lines("some.parquet", logged.append, lambda: next(clock))
    for done in range(0, 101):
        report(done * MB, 100 * MB)
    assert len(logged) == 10
    assert re.fullmatch(r"some\.parquet: 10 of 100 MB, [\d.]+ MB/s, \d+ s left", logged[0])


def test_a_small_download_logs_nothing():
    logged: list[str] = []
    report = progress.lines("some.parquet", logged.append, lambda: 0.0)
    for done in range(11):
        report(done * MB, 10 * MB)
    assert logged == []


def test_a_slow_download_of_unknown_size_logs_every_half_minute():
    logged, clock = list[str](), [0.0]
    report = progress.lines("some.parquet", logged.append, lambda: clock[0])
    for second in range(91):
        clock[0] = float(second)
        report(second * MB, None)
    assert logged == [f"some.parquet: {30 * n} MB, 1.0 MB/s" for n in (1, 2, 3)]


def test_bytes_of_an_earlier_try_are_not_in_the_rate():
    logged, clock = list[str](), [0.0]
    report = progress.lines("some.parquet", logged.append, lambda: clock[0])
    report(900 * MB, 1000 * MB)
    clock[0] = 50.0
    report(950 * MB, 1000 * MB)
    assert logged == ["some.parquet: 950 of 1000 MB, 1.0 MB/s, 50 s left"]


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    terminal, logged = Terminal(), list[str]()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.reporting("some.parquet", logged.append) as report:
        for done in range(0, 101, 10):
            report(done * MB, 100 * MB)
    assert re.search(r"some\.parquet:.*/100M", terminal.getvalue())
    assert logged == []


@pytest.mark.parametrize("again", [5 * MB, 0])
def test_a_bar_follows_a_download_that_starts_over(monkeypatch, again):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.reporting("some.parquet", print) as report:
        report(60 * MB, 100 * MB)
        report(again, 80 * MB)
        report(80 * MB, 80 * MB)
    assert "/80.0M" in terminal.getvalue()


def test_without_a_terminal_lines_are_logged(monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.reporting("some.parquet", logged.append) as report:
        report(0, 100 * MB)
        report(50 * MB, 100 * MB)
    assert len(logged) == 1
