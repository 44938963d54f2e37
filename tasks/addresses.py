"""Addresses of local files: every path that becomes a URL is quoted here, and read back here.

A state folder may be named anything: unquoted, `%2F` in it would be read as a slash, and what
follows a `?` as options.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

SQLITE = "sqlite:///"


def of_file(path: Path) -> str:
    return path.resolve().as_uri()


def of_sqlite(path: Path, driver: str = "") -> str:
    """The address of a database for SQLAlchemy, `driver` as in "aiosqlite"."""
    scheme = f"sqlite+{driver}:///" if driver else SQLITE
    return f"{scheme}{quote(str(path))}"


def is_sqlite(address: str) -> bool:
    return address.startswith(SQLITE)


def sqlite_path(address: str) -> Path:
    """The file of a `sqlite:///` address."""
    return Path(unquote(address.removeprefix(SQLITE).partition("?")[0]))
