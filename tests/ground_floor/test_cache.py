"""Prefect's cache, with the checks that it lacks."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from tasks import cache
from tasks.errors import DataError
from tasks.files import FileRef
from tests import damage

pytestmark = pytest.mark.slow  # a Prefect server


@dataclasses.dataclass(frozen=True)
class Pair:
    name: str
    refs: dict[str, list[FileRef]]


@task(persist_result=True, cache_key_fn=cache.given_key)
def write_file(key: str, path: Path, text: str) -> FileRef:
    """Writes a file, and a line into a log beside it each time it does."""
    with path.with_suffix(".log").open("a") as log:
        log.write("written\n")
    if text == "bad":
        raise DataError("this text is bad")
    path.write_text(text)
    return FileRef(str(path), hashlib.sha256(text.encode()).hexdigest(), len(text.encode()))


@task(persist_result=True, cache_key_fn=cache.given_key)
def write_loud_file(key: str, path: Path, text: str) -> FileRef:
    return write_file.fn(key, path.with_name("loud"), text.upper())


@pytest.fixture
def path(tmp_path, prefect_server):
    return tmp_path / "file"


def in_flow(test):
    """The test's body as one flow run."""

    @functools.wraps(test)
    def run(**fixtures):
        @flow(name=test.__name__)
        def body() -> None:
            test(**fixtures)

        body()

    return run


def key(path, name="write-file"):
    return cache.key(name, 1, path=str(path))


def times_written(path):
    return len(path.with_suffix(".log").read_text().splitlines())


@in_flow
def test_the_first_call_does_the_work_and_the_second_finds_its_result(path):
    first, second = (cache.ensure(write_file, key(path), path, "text") for _ in range(2))
    assert first == (second[0], False)
    assert second[1] is True
    assert times_written(path) == 1


@pytest.mark.parametrize("harm", [damage.delete, damage.truncate, damage.change])
@in_flow
def test_a_damaged_file_is_made_again(path, harm):
    cache.ensure(write_file, key(path), path, "text")
    harm(path)
    assert cache.ensure(write_file, key(path), path, "text")[1] is False
    assert path.read_text() == "text"
    assert cache.ensure(write_file, key(path), path, "text")[1] is True


@in_flow
def test_two_tasks_with_equal_inputs_have_separate_results(path):
    quiet, _ = cache.ensure(write_file, key(path, "write-file"), path, "text")
    loud, cached = cache.ensure(write_loud_file, key(path, "write-loud-file"), path, "text")
    assert not cached
    assert quiet.path != loud.path


@in_flow
def test_an_error_of_the_task_is_raised(path):
    with pytest.raises(DataError, match="this text is bad"):
        cache.ensure(write_file, key(path), path, "bad")


@in_flow
def test_a_failure_is_not_cached(path):
    with pytest.raises(DataError):
        cache.ensure(write_file, key(path), path, "bad")
    assert cache.ensure(write_file, key(path), path, "text")[1] is False


@in_flow
def test_an_unreadable_result_is_made_again(path):
    cache.ensure(write_file, key(path), path, "text")
    store = PREFECT_LOCAL_STORAGE_PATH.value()
    (store / key(path)).write_text("no result")
    assert cache.ensure(write_file, key(path), path, "text")[0].bytes == 4
    assert times_written(path) == 2


@in_flow
def test_of_many_calls_only_the_damaged_one_is_made_again(path):
    paths = [path.with_name(name) for name in ("a", "b", "c")]
    calls = [(key(each), each, each.name * 3) for each in paths]
    made, cached = cache.ensure_each(write_file, calls)
    assert [Path(ref.path) for ref in made] == paths
    assert not cached
    paths[1].unlink()
    assert cache.ensure_each(write_file, calls) == (made, False)
    assert [times_written(each) for each in paths] == [1, 2, 1]
    assert cache.ensure_each(write_file, calls) == (made, True)


@in_flow
def test_of_many_calls_the_successful_ones_are_kept_when_one_fails(path):
    paths = [path.with_name(name) for name in ("a", "b")]
    calls = [(key(paths[0]), paths[0], "bad"), (key(paths[1]), paths[1], "good")]
    with pytest.raises(DataError, match="this text is bad"):
        cache.ensure_each(write_file, calls)
    assert cache.ensure(write_file, *calls[1])[1] is True


def test_files_are_found_wherever_they_are_in_a_result(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    good = FileRef(str(tmp_path / "x"), hashlib.sha256(b"x").hexdigest(), 1)
    gone = FileRef(str(tmp_path / "y"), "0" * 64, 1)
    assert cache.damage(("name", 3, None, Pair("p", {"a": [good]}))) is None
    assert cache.damage(("name", Pair("p", {"a": [good, gone]}))) == f"{tmp_path / 'y'} is gone"


def test_a_key_names_its_task_and_version():
    assert cache.key("pack-rows", 3, length=5).startswith("pack-rows:v3:")


def test_a_key_depends_on_every_part_and_not_on_their_order():
    assert cache.key("t", 1, a=1, b=2) == cache.key("t", 1, b=2, a=1)
    keys = [
        cache.key("t", 1, a=1),
        cache.key("t", 1, a=2),
        cache.key("t", 1, b=1),
        cache.key("t", 2, a=1),
        cache.key("u", 1, a=1),
    ]
    assert len(set(keys)) == len(keys)


def test_a_part_of_a_key_without_a_json_form_is_refused():
    with pytest.raises(TypeError):
        cache.key("t", 1, part=object())
