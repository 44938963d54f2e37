"""Objects of S3 and of servers with its protocol: s3://bucket/prefix.

s3fs finds the credentials, the region and the server (AWS_*, AWS_ENDPOINT_URL, profiles, roles) and
signs an address for each request. `web` downloads from it, as s3fs itself starts again from the
first byte after a broken connection and leaves a short file behind when it gives up.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from tasks.data import web
from tasks.errors import DataError
from tasks.text import one_line

SIGNED_SECONDS = 3600  # an address is signed just before its request and read for no longer
LOGIN = (
    "it may not be read with these credentials, or with none: "
    "set AWS_ACCESS_KEY_ID or AWS_PROFILE to one that may"
)


def address(source: str, name: str) -> web.Address:
    """The object `name` below the prefix; `url` raises DataError when the settings give none."""
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    key = "/".join(part for part in (prefix.strip("/"), name) if part)
    if not bucket:
        raise DataError(f"source {source!r} names no bucket: write s3://bucket/prefix")
    connect = functools.cache(_connect)  # finding the credentials takes a while
    return web.Address(
        f"s3://{bucket}/{key}",
        lambda: _sign(connect, bucket, key),
        LOGIN,
        "If-Match",
        certificates=os.environ.get("AWS_CA_BUNDLE"),
    )


def _connect(anonymous: bool) -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        anon=anonymous,
        skip_instance_cache=True,
        client_kwargs={"region_name": os.environ.get("AWS_REGION") or None},  # botocore ignores it
        config_kwargs={"signature_version": "s3v4"},
    )


def _sign(connect: Callable[[bool], Any], bucket: str, key: str) -> str:
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        try:
            return str(connect(False).url(f"{bucket}/{key}", expires=SIGNED_SECONDS))
        except NoCredentialsError:
            return str(connect(True).url(f"{bucket}/{key}"))
    except (BotoCoreError, ValueError) as error:
        raise DataError(
            f"s3://{bucket}/{key}: {one_line(str(error))}. "
            "Correct [data] source in the profile, or AWS_*"
        ) from error
