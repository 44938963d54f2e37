import sqlite3

from tests.faults.llm_server import FAKE_KEY
from tests.leaks import files_with


def test_a_key_is_found_in_text_and_in_databases_and_nothing_else_is(tmp_path):
    key = FAKE_KEY[::-1]  # not the one that the whole suite is searched for
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "run.log").write_text(f"Authorization: Bearer {key}\n")
    (tmp_path / "other.log").write_text(f"Authorization: Bearer {key[:-1]}\n")
    with sqlite3.connect(tmp_path / "store.db") as store:
        store.execute("create table words (word text)")
        store.execute("insert into words values (?)", (f"before {key} after",))
    store.close()

    found = {path.removeprefix(f"{tmp_path}/") for path in files_with(key, tmp_path)}
    assert found == {"deep/er/run.log", "store.db"}
