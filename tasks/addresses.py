"""Addresses of local files: every path that becomes a URL is quoted here, and read back here.

A state folder may be named anything. Unquoted, `%2F` in its name would be read as a slash, and what
follows a `?` as options.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

SQLITE = re.compile(r"sqlite(\+\w+)?:///")


def of_file(path: Path) -> str:
    return path.resolve().as_uri()


def of_sqlite(path: Path, driver: str | None = None) -> str:
    """The address of a database, for SQLAlchemy, which reads all but `%` and `?` as it is.

    Without a driver it is `sqlite:///...`, unless the path needs quotes: MLflow makes the folder
    that stands in such an address, quotes and all.
    """
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    if driver is None and quoted != str(path):
        driver = "pysqlite"
    return f"sqlite{'+' if driver else ''}{driver or ''}:///{quoted}"


def is_sqlite(address: str) -> bool:
    return SQLITE.match(address) is not None


def sqlite_path(address: str) -> Path:
    """The file of an address of SQLite."""
    return Path(unquote(SQLITE.sub("", address, count=1).partition("?")[0]))
