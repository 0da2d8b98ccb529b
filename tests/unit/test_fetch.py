"""Fetch archives over HTTP, from a path, a mirror or a package."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import importlib.util
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from optstate.data import fetch as fetching
from optstate.data import packaged
from optstate.data.fetch import fetch, fetch_verified, resolve_mirror
from optstate.job import InputError

CONTENT = bytes(range(256)) * 8000  # 2 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_the_first_digits_of_a_hash_are_enough(tmp_path):
    """torchvision has them in the names of its weights."""
    (tmp_path / "source").write_bytes(CONTENT)
    assert fetch(str(tmp_path / "source"), SHA256[:8], tmp_path / "output") == SHA256
    with pytest.raises(InputError, match=f"its SHA-256 is {SHA256}, but 0{SHA256[:7]} is expected"):
        fetch(str(tmp_path / "source"), f"0{SHA256[:7]}", tmp_path / "other")
    assert not (tmp_path / "other").exists()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` at every path, with ranges and with the errors that a test sets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []  # Range header of every request
        self.break_after: list[int] = []  # bytes after which the next responses break
        self.fail_with: list[int] = []  # status codes of the next responses
        self.content = CONTENT
        self.encoding: str | None = None  # Content-Encoding of the responses
        self.sends_length = True  # otherwise a response ends with its connection
        self.never_ends = False  # the response repeats its content, up to 100 MB
        self.honour_ranges = True

    def handle_error(self, request, client_address) -> None:
        pass  # clients may close the connection early

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/images.tgz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.ranges.append(requested)
        if self.server.fail_with:
            self.send_error(self.server.fail_with.pop(0))
            return
        start = 0
        if requested and self.server.honour_ranges:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(self.server.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = self.server.content[start:]
        if self.server.sends_length:
            self.send_header("Content-Length", str(len(body)))
        if self.server.encoding:
            self.send_header("Content-Encoding", self.server.encoding)
        self.end_headers()
        if self.server.break_after:
            self.wfile.write(body[: self.server.break_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)
        for _ in range(50 if self.server.never_ends else 0):
            self.wfile.write(body)  # fails when the client closes the connection

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "BACKOFF_SECONDS", 0.001)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def test_a_download_leaves_only_the_archive(server, output):
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT
    assert [path.name for path in output.parent.iterdir()] == ["archive"]


def test_a_download_resumes_after_broken_connections(server, output):
    server.break_after = [1_000_000, 200_000]
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT
    assert server.ranges[0] is None
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in server.ranges[1:]]
    assert 0 < starts[0] < starts[1]


def test_a_download_resumes_from_an_existing_part(server, output):
    output.with_name("archive.part").write_bytes(CONTENT[:1_500_000])
    fetch(server.url, SHA256, output)
    assert server.ranges == ["bytes=1500000-"]
    assert output.read_bytes() == CONTENT


def test_a_complete_part_is_not_downloaded_again(server, output):
    output.with_name("archive.part").write_bytes(CONTENT)
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("size", [1_000, len(CONTENT) + 1], ids=["short", "long"])
def test_a_damaged_part_is_downloaded_again(server, output, size):
    output.with_name("archive.part").write_bytes(b"x" * size)
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, output):
    server.honour_ranges = False
    server.break_after = [100_000]
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


def test_a_request_to_a_busy_server_is_repeated(server, output):
    server.fail_with = [503, 429]
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_an_archive_with_a_declared_encoding_is_stored_as_sent(server, output, encoding):
    """Such servers mean the archive's own compression. Decoding would change the bytes."""
    server.content = gzip.compress(CONTENT[:256] + random.Random(0).randbytes(1_000_000))
    server.encoding = encoding
    server.break_after = [300_000, 300_000]
    fetch(server.url, hashlib.sha256(server.content).hexdigest(), output)
    assert output.read_bytes() == server.content
    assert len(server.ranges) == 3


def test_a_size_is_not_required(server, output):
    server.sends_length = False
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


def set_free_space(monkeypatch, free: int) -> None:
    """Let ``shutil.disk_usage`` report ``free`` bytes, less the files in the folder."""

    def get_usage(folder: Path) -> object:
        used = sum(path.stat().st_size for path in folder.iterdir())
        return type("Usage", (), {"free": free - used})

    monkeypatch.setattr("shutil.disk_usage", get_usage)


def test_an_endless_download_stops_before_the_disk_is_full(server, output, monkeypatch):
    server.sends_length, server.never_ends = False, True
    set_free_space(monkeypatch, 10_000_000)
    message = rf"{server.url}: the server has sent 9\.\d MB without an end.*Correct the address"
    with pytest.raises(InputError, match=message):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


def test_an_announced_archive_may_fill_the_disk(server, output, monkeypatch):
    set_free_space(monkeypatch, len(CONTENT))
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


def test_an_endless_download_stops_at_the_announced_size(server, output):
    server.never_ends = True
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


def test_a_server_that_never_comes_further_is_an_error(server, output):
    """Each connection breaks at another byte, and the next one starts again."""
    server.honour_ranges = False
    server.break_after = [100_000 * number for number in (9, 1, 2, 3, 4, 5, 6, 7, 8, 10)]
    with pytest.raises(InputError, match=f"{server.url}: cannot be downloaded"):
        fetch(server.url, SHA256, output)
    assert len(server.ranges) == fetching.MAX_FAILURES


def test_a_second_refused_range_is_an_error(server, output):
    output.with_name("archive.part").write_bytes(CONTENT[:1000])
    server.fail_with = [416, 416]
    with pytest.raises(InputError, match=f"{server.url}: the server answers 416 .* Correct the"):
        fetch(server.url, SHA256, output)
    assert len(server.ranges) == 2
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_refused_request_is_not_repeated(server, output, status):
    server.fail_with = [status]
    with pytest.raises(InputError, match=f"{server.url}.*{status}.*Correct the address"):
        fetch(server.url, SHA256, output)
    assert len(server.ranges) == 1
    assert list(output.parent.iterdir()) == []


def test_a_refused_range_leaves_no_files(server, output):
    output.with_name("archive.part").write_bytes(CONTENT[:1000])
    server.fail_with = [404]
    with pytest.raises(InputError, match="404"):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


def test_a_server_that_stays_down_is_an_error(server, output):
    server.fail_with = [503] * fetching.MAX_FAILURES
    with pytest.raises(InputError, match=r"cannot be downloaded \(503.*`mirror`"):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


def test_a_download_without_a_byte_leaves_no_files(server, output):
    server.break_after = [0] * fetching.MAX_FAILURES
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


def test_a_broken_download_leaves_the_part_that_the_next_call_continues(server, output):
    server.break_after = [1_000_000] + [0] * fetching.MAX_FAILURES
    with pytest.raises(InputError, match="cannot be downloaded .the connection failed or broke"):
        fetch(server.url, SHA256, output)
    assert [path.name for path in output.parent.iterdir()] == ["archive.part"]
    server.ranges.clear()
    server.break_after.clear()
    fetch(server.url, SHA256, output)
    assert server.ranges == ["bytes=1000000-"]
    assert output.read_bytes() == CONTENT


def test_a_wrong_checksum_is_an_error(server, output):
    server.content = b"something else"
    other = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(InputError, match=f"{server.url}: its SHA-256 is {other}, but {SHA256} is"):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


def test_a_full_disk_is_an_error(server, output, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(InputError, match="2.0 MB are needed and 1.0 MB are free"):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


def test_a_full_disk_keeps_the_part(server, output, monkeypatch):
    output.with_name("archive.part").write_bytes(CONTENT[:1_000_000])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    with pytest.raises(InputError, match="1.0 MB are needed and 0.0 MB are free"):
        fetch(server.url, SHA256, output)
    assert output.with_name("archive.part").stat().st_size == 1_000_000


def test_a_disk_that_becomes_full_leaves_no_files(server, output, monkeypatch):
    def fail(response: object) -> Iterator[bytes]:
        yield CONTENT[:1000]
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(fetching, "_read_body", fail)
    with pytest.raises(OSError, match="No space left"):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_local_files_are_copied(tmp_path, output, form):
    source = tmp_path / "with space.tgz"
    source.write_bytes(CONTENT)
    fetch(form.format(source).replace(" ", "%20" if "file" in form else " "), SHA256, output)
    assert output.read_bytes() == source.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("mirror", "address"),
    [
        (None, "https://example.org/a/images.tgz?x=1"),
        ("/mirror/", "/mirror/images.tgz"),
        ("http://mirror.example.org/b", "http://mirror.example.org/b/images.tgz"),
    ],
)
def test_a_mirror_has_the_file_of_the_same_name(mirror, address):
    assert resolve_mirror("https://example.org/a/images.tgz?x=1", mirror) == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://x/a.tgz", "s3 addresses are not supported"),
        ("http://[::1/a", "invalid address"),
        ("https://a..b/x.tgz", "cannot be fetched .*Correct its address"),
        ("http://host:abc/x.tgz", "cannot be fetched .*Correct its address"),
    ],
)
def test_an_invalid_address_is_an_error(address, message, output):
    with pytest.raises(InputError, match=message):
        fetch(address, SHA256, output)


@pytest.mark.parametrize("name", packaged.SHA256)
def test_packaged_sets_match_their_checksums(name, output):
    write = functools.partial(packaged.write_archive, name)
    fetch_verified(name, write, packaged.SHA256[name], output)
    assert output.stat().st_size > 1_000_000


def test_an_interrupted_copy_leaves_no_files(tmp_path, output, monkeypatch):
    (tmp_path / "images.tgz").write_bytes(CONTENT)

    def copy_part(source, target):
        target.write_bytes(CONTENT[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", copy_part)
    with contextlib.suppress(KeyboardInterrupt):
        fetch(str(tmp_path / "images.tgz"), SHA256, output)
    assert [path.name for path in output.parent.iterdir()] == ["images.tgz"]


@pytest.mark.parametrize("name", ["optstate.data.packaged", "optstate.data.manifest"])
def test_the_submitting_host_needs_no_packages(name, monkeypatch):
    """Snakemake imports these modules on hosts that may have no other package."""
    for package in ("numpy", "PIL", "sklearn", "mlxtend", "requests", "tqdm", "torch"):
        monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
    spec = importlib.util.find_spec(name)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
