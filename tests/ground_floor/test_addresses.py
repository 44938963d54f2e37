"""Paths as addresses, as SQLAlchemy and the standard library read them."""

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from tasks import addresses

# No half of a surrogate pair: such a name cannot be a part of an address.
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
PATHS = st.lists(NAMES, min_size=1).map(lambda names: Path("/state", *names))


@given(path=PATHS)
def test_a_database_is_where_its_path_says(path):
    address = addresses.of_sqlite(path)
    assert make_url(address).database == str(path)
    assert addresses.is_sqlite(address)
    assert addresses.sqlite_path(address) == path
    assert make_url(addresses.of_sqlite(path, "aiosqlite")).database == str(path)


@given(path=PATHS)
def test_a_file_is_where_its_path_says(path):
    address = urlsplit(addresses.of_file(path))
    assert (address.scheme, address.query, address.fragment) == ("file", "", "")
    assert url2pathname(address.path) == str(path.resolve())


def test_an_address_that_a_person_wrote_is_read():
    assert addresses.sqlite_path("sqlite:////a/b c.db") == Path("/a/b c.db")
    assert addresses.sqlite_path("sqlite:///b.db?timeout=5") == Path("b.db")
    assert addresses.sqlite_path("sqlite+pysqlite:////a%20b.db") == Path("/a b.db")
    assert not addresses.is_sqlite("postgresql://a/b")


def test_a_plain_path_has_a_plain_address():
    assert addresses.of_sqlite(Path("/a b/#1/\u00e9.db")) == "sqlite:////a b/#1/\u00e9.db"
