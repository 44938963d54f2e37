"""Merges of whole texts by the real git: exact bytes, whatever they are."""

import os
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import NightlyError
from tasks.proposers.three_way_merge import run_git, three_way, three_way_of_files

BASE = "".join(f"line {n}\n" for n in range(20))
OURS = BASE.replace("line 2\n", "our line\n")
THEIRS = BASE.replace("line 17\n", "their line\n")

# All that str.splitlines would cut and git does not, lone surrogates, and conflict markers.
LINE = st.one_of(
    st.text(st.characters(exclude_characters="\n\0"), max_size=12),
    st.sampled_from(
        [
            "",
            "x",
            "\t",
            "a\rb",
            "\x0c",
            "\x85",
            "\u2028",
            "\ud800",
            "\ufeff",
            "<<<<<<< ours",
            "=======",
            ">>>>>>>",
        ]
    ),
)
TEXT = st.builds(
    lambda lines, eol, last: eol.join(lines) + (eol if last else ""),
    st.lists(LINE),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
often = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)


def test_changes_of_distant_lines_merge():
    assert three_way(BASE, OURS, THEIRS) == OURS.replace("line 17\n", "their line\n")


@pytest.mark.parametrize(
    "theirs", [BASE.replace("line 2\n", "their line\n"), BASE.replace("line 2\n", ""), ""]
)
def test_changes_of_the_same_lines_conflict(theirs):
    assert three_way(BASE, OURS, theirs) is None


def test_the_same_change_on_both_sides_is_one_change():
    assert three_way(BASE, OURS, OURS) == OURS


def test_many_conflicts_are_a_conflict():
    base, ours, theirs = (
        "".join(f"{side} {n}\n" + "same\n" * 4 for n in range(300))
        for side in ("base", "ours", "theirs")
    )
    assert three_way(base, ours, theirs) is None


def test_marks_of_a_conflict_in_the_text_are_text():
    marked = BASE.replace("line 10\n", "<<<<<<< ours\n=======\n>>>>>>> theirs\n")
    merged = three_way(
        marked,
        marked.replace("line 2\n", "our line\n"),
        marked.replace("line 17\n", "their line\n"),
    )
    assert merged == marked.replace("line 2\n", "our line\n").replace("line 17\n", "their line\n")


def test_binary_text_is_not_merged():
    assert three_way(BASE, OURS, THEIRS + "\0") is None


@often
@given(base=TEXT, other=TEXT)
def test_if_one_side_has_changed_nothing_the_other_is_the_result(base, other):
    assert three_way(base, base, other) == other
    assert three_way(base, other, base) == other


@often
@given(
    kept=TEXT,
    old=st.tuples(LINE, LINE),
    new=st.tuples(LINE, LINE),
    eol=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_changes_in_distant_regions_merge_to_both(kept, old, new, eol, last):
    # Lines that neither side has changed, between and around the others.
    wall = "".join(f"wall {n}{eol}" for n in range(4))

    def text(first: str, second: str) -> str:
        return f"{wall}first: {first}{eol}{wall}{kept}\n{wall}second: {second}{eol if last else ''}"

    assert three_way(text(*old), text(new[0], old[1]), text(old[0], new[1])) == text(*new)


@often
@given(base=TEXT, ours=TEXT, theirs=TEXT)
def test_it_does_not_matter_which_side_is_ours(base, ours, theirs):
    merged = three_way(base, ours, theirs)
    assert three_way(base, theirs, ours) == merged


def test_a_hostile_configuration_and_a_surrounding_repository_are_ignored(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".git" / "config").write_text("not a configuration")
    (tmp_path / "config").write_text("not one either")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert three_way(BASE, BASE, THEIRS) == THEIRS
    assert os.listdir(tmp_path / "tmp") == []


def test_a_git_that_fails_is_an_error(tmp_path, monkeypatch):
    broken = tmp_path / "git"
    broken.write_text("#!/bin/sh\necho out of memory >&2\nexit 128\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(NightlyError, match=r"git merge-file failed \(exit 128\): out of memory"):
        three_way(BASE, OURS, THEIRS)


def test_git_gets_its_input_and_its_output_is_returned(tmp_path):
    done = run_git(tmp_path, "hash-object", "--stdin", given=b"x\n")
    assert (done.returncode, done.stdout) == (0, b"587be6b4c3f93f93c489c0111bba5596147a26cb\n")


@pytest.mark.parametrize("signal", [9, 15])
def test_a_git_that_a_signal_has_ended_is_not_a_conflict(tmp_path, monkeypatch, signal):
    (tmp_path / "git").write_text(f"#!/bin/sh\nkill -{signal} $$\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NightlyError, match=f"git merge-file was ended by signal {signal}"):
        three_way(BASE, OURS, THEIRS)


def test_a_ctrl_c_in_the_terminal_does_not_reach_git(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\ntest $(ps -o pgid= -p $$) -eq $$\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run_git(tmp_path, "status").returncode == 0


FILE = "A = 1  # one\nB = 2  # two\nprint(A, B)\n"


def test_neighbouring_knobs_are_merged_by_value_and_the_text_around_them_as_text():
    ours, theirs = FILE.replace("A = 1", "A = 5"), FILE.replace("B = 2", "B = 7")
    assert three_way(FILE, ours, theirs) is None
    assert three_way_of_files(FILE, ours, theirs) == "A = 5  # one\nB = 7  # two\nprint(A, B)\n"
    renamed = theirs.replace("# two", "# seven")
    assert three_way_of_files(FILE, FILE, renamed) == renamed


def test_a_knob_with_two_new_values_is_a_conflict_and_with_the_same_one_none():
    ours, theirs = FILE.replace("A = 1", "A = 5"), FILE.replace("A = 1", "A = 7")
    assert three_way_of_files(FILE, ours, theirs) is None
    assert three_way_of_files(FILE, ours, ours) == ours


def test_files_that_do_not_parse_are_merged_as_text():
    broken = f"def\n{BASE}"
    assert three_way_of_files(broken, f"def\n{OURS}", f"def\n{THEIRS}") == three_way(
        broken, f"def\n{OURS}", f"def\n{THEIRS}"
    )
