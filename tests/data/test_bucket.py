"""Downloads from S3 servers: moto, and nanio, which checks signatures. A proxy cuts connections."""

import contextlib
import hashlib
import os
import random
import socket
import subprocess
import sys
import time

import pytest
from botocore.session import get_session

from tasks.data import fetch
from tasks.errors import DataError
from tests.origin import Cutter, Origin

NAME = "shard 00000.parquet"
CONTENT = b"PAR1" + random.Random(0).randbytes(20_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = {
    "AWS_ACCESS_KEY_ID": "me",
    "AWS_SECRET_ACCESS_KEY": "the-right-secret",
    "AWS_REGION": "us-east-1",
}
SOURCE = "s3://shards/some/prefix"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def serve(command, port, **settings):
    """A server in a subprocess, once it listens."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command, quiet = [sys.executable, "-m", *command], subprocess.DEVNULL
    process = subprocess.Popen(command, env=kept | settings, stdout=quiet, stderr=quiet)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            time.sleep(0.1)
    raise AssertionError(f"{command} does not listen")


@pytest.fixture(scope="module")
def moto():
    port = free_port()
    process = serve(["moto.server", "-H", "127.0.0.1", "-p", str(port)], port)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def nanio(tmp_path_factory):
    port, folder = free_port(), str(tmp_path_factory.mktemp("nanio"))
    login = {
        "NANIO_ACCESS_KEY": KEY["AWS_ACCESS_KEY_ID"],
        "NANIO_SECRET_KEY": KEY["AWS_SECRET_ACCESS_KEY"],
    }
    process = serve(
        ["nanio", "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", folder],
        port,
        **login,
    )
    yield port
    process.terminate()
    process.wait()


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """The proxy, keys and profiles of the user who runs the tests are not used."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def use(monkeypatch):
    """Directs requests to the server at an address."""
    return lambda url: monkeypatch.setenv("AWS_ENDPOINT_URL", url)


def put(port, content, name=NAME):
    client = get_session().create_client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="shards")
    client.put_object(Bucket="shards", Key=f"some/prefix/{name}", Body=content)
    client.close()


@pytest.mark.parametrize("server", ["moto", "nanio"])
def test_twenty_cuts_cost_a_chunk_each_and_nothing_else(request, server, use, tmp_path):
    port = request.getfixturevalue(server)
    put(port, CONTENT)
    with Cutter(port, cuts=20, after=950_000) as cutter:
        use(cutter.url)
        ref = fetch.fetch(SOURCE, NAME, tmp_path, None)
    assert (cutter.done, ref.sha256) == (20, SHA256)
    assert cutter.sent < len(CONTENT) + 20 * 80_000


@pytest.mark.parametrize("server", ["moto", "nanio"])
@pytest.mark.parametrize("size", [len(CONTENT), 3_000_000])
def test_an_object_that_is_replaced_meanwhile_is_downloaded_again(
    request, server, use, tmp_path, size
):
    port = request.getfixturevalue(server)
    put(port, CONTENT)
    changed = CONTENT[:size][::-1]
    with Cutter(port, cuts=15, after=950_000) as cutter:
        use(cutter.url)
        cutter.on_cut = lambda number: put(port, changed) if number == 8 else None
        ref = fetch.fetch(SOURCE, NAME, tmp_path, None)
    assert ref.sha256 == hashlib.sha256(changed).hexdigest()
    assert (tmp_path / NAME).read_bytes() == changed


def refused(source, folder, name=NAME):
    with pytest.raises(DataError) as caught:
        fetch.fetch(source, name, folder, None)
    assert not isinstance(caught.value, fetch.Unreachable)
    assert list(folder.iterdir()) == []
    text = str(caught.value)
    assert "\n" not in text
    assert "X-Amz" not in text
    return text


@pytest.mark.parametrize("server", ["moto", "nanio"])
def test_a_missing_bucket_is_named(request, server, use, tmp_path):
    use(f"http://127.0.0.1:{request.getfixturevalue(server)}")
    assert refused("s3://nobody/here", tmp_path).startswith(
        f"s3://nobody/here/{NAME}: HTTP 404 NoSuchBucket: there is no"
    )


@pytest.mark.parametrize("server", ["moto", "nanio"])
def test_a_missing_key_is_named(request, server, use, tmp_path):
    port = request.getfixturevalue(server)
    put(port, b"PAR1", "other")
    use(f"http://127.0.0.1:{port}")
    assert refused(SOURCE, tmp_path, "none").startswith(
        f"{SOURCE}/none: HTTP 404 NoSuchKey: there is no such file"
    )


def test_a_wrong_secret_is_reported(nanio, use, tmp_path, monkeypatch):
    put(nanio, CONTENT)
    use(f"http://127.0.0.1:{nanio}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-wrong-secret")
    text = refused(SOURCE, tmp_path)
    assert (
        "HTTP 403 SignatureDoesNotMatch: the secret is wrong: correct AWS_SECRET_ACCESS_KEY" in text
    )
    assert "the-wrong-secret" not in text


def test_a_wrong_key_is_reported(nanio, use, tmp_path, monkeypatch):
    put(nanio, CONTENT)
    use(f"http://127.0.0.1:{nanio}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    assert "HTTP 403 InvalidAccessKeyId: the server does not know this key" in refused(
        SOURCE, tmp_path
    )


def test_a_private_bucket_without_a_key_is_reported(moto, use, tmp_path, monkeypatch):
    put(moto, b"PAR1")
    use(f"http://127.0.0.1:{moto}")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "HTTP 403: it may not be read with these credentials, or with none" in refused(
        SOURCE, tmp_path
    )


def test_a_public_bucket_needs_no_key(use, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with Origin({"open/some.parquet": b"PAR1"}) as origin:
        use(origin.url)
        assert fetch.fetch("s3://open", "some.parquet", tmp_path, None).bytes == 4
    assert origin.requests[0]["path"] == "/open/some.parquet"


def test_the_missing_bytes_are_requested_with_their_version(use, tmp_path):
    with Origin({"open/some.parquet": CONTENT[:500_000]}) as origin:
        origin.cut = 200_000
        use(origin.url)
        fetch.fetch("s3://open", "some.parquet", tmp_path, None)
    assert [request.get("If-Match") for request in origin.requests] == [None, '"one"', '"one"']


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_setting_is_used_for_the_signature(use, tmp_path, monkeypatch, name):
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv(name, "eu-west-1")
    with Origin({"open/some.parquet": b"PAR1"}) as origin:
        use(origin.url)
        fetch.fetch("s3://open", "some.parquet", tmp_path, None)
    assert "%2Feu-west-1%2Fs3%2Faws4_request" in origin.requests[0]["path"]


def test_half_a_login_is_reported(use, tmp_path, monkeypatch):
    use("http://127.0.0.1:9")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "Partial credentials" in refused(SOURCE, tmp_path)


def test_the_address_for_s3_only_has_precedence(use, tmp_path, monkeypatch):
    use("http://127.0.0.1:9")
    with Origin({"open/some.parquet": b"PAR1"}) as origin:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", origin.url)
        assert fetch.fetch("s3://open", "some.parquet", tmp_path, None).bytes == 4


@pytest.mark.parametrize(
    ("code", "headers", "body", "text"),
    [
        (
            301,
            {"x-amz-bucket-region": "eu-west-1"},
            b"<Code>PermanentRedirect</Code>",
            "set AWS_REGION to eu-west-1",
        ),
        (400, {}, b"<Code>ExpiredToken</Code>", "have expired: renew them"),
        (403, {}, b"<Code>RequestTimeTooSkewed</Code>", "the clock of this machine is wrong"),
        (
            403,
            {},
            b"<Code>AccessDenied</Code>",
            "set AWS_ACCESS_KEY_ID or AWS_PROFILE to one that may",
        ),
    ],
)
def test_an_error_code_of_the_server_has_a_remedy(use, tmp_path, code, headers, body, text):
    with Origin({}) as origin:
        origin.script = [(code, headers, body)]
        use(origin.url)
        assert text in refused(SOURCE, tmp_path)


def test_a_missing_certificate_file_is_named(use, tmp_path, monkeypatch):
    use("https://127.0.0.1:9")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    assert "/nowhere/ca.pem" in refused(SOURCE, tmp_path)


def test_a_source_without_a_bucket_is_refused(tmp_path):
    assert "write s3://bucket/prefix" in refused("s3:///prefix", tmp_path)
