"""Fetching over HTTP, from a path, from a mirror, from a package."""

import contextlib
import functools
import hashlib
import http.server
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import assert_one_line, run_module
from optstate.data import fetch as fetching
from optstate.data import packaged
from optstate.data.fetch import fetch, mirrored
from optstate.job import InputError

CONTENT = bytes(range(256)) * 8000  # 2 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every path but /missing, with ranges, and with faults as told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []  # the Range header of every request
        self.break_after: list[int] = []  # bytes after which the next responses break off
        self.fail_with: list[int] = []  # status codes of the next responses
        self.content = CONTENT
        self.honour_ranges = True

    def handle_error(self, request, client_address) -> None:
        pass  # a client that goes away is no news

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/images.tgz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.server.fail_with:
            self.send_error(self.server.fail_with.pop(0))
            return
        start = 0
        if wanted and self.server.honour_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
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
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.break_after:
            self.wfile.write(body[: self.server.break_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

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


def test_download(server, output):
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT
    assert [path.name for path in output.parent.iterdir()] == ["archive"]


def test_broken_connections_are_resumed(server, output):
    server.break_after = [1_000_000, 200_000]
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT
    assert server.ranges[0] is None
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in server.ranges[1:]]
    assert 0 < starts[0] < starts[1]


def test_an_earlier_part_is_resumed(server, output):
    output.with_name("archive.part").write_bytes(CONTENT[:1_500_000])
    fetch(server.url, SHA256, output)
    assert server.ranges == ["bytes=1500000-"]
    assert output.read_bytes() == CONTENT


def test_a_whole_part_needs_nothing_more(server, output):
    output.with_name("archive.part").write_bytes(CONTENT)
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1_000, len(CONTENT) + 1], ids=["short", "long"])
def test_a_damaged_part_is_replaced(server, output, size):
    output.with_name("archive.part").write_bytes(b"x" * size)
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, output):
    server.honour_ranges = False
    server.break_after = [100_000]
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, output):
    server.fail_with = [503, 429]
    fetch(server.url, SHA256, output)
    assert output.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404])
def test_a_final_no(server, output, status):
    server.fail_with = [status]
    with pytest.raises(InputError, match=f"{server.url}.*{status}.*mend the address"):
        fetch(server.url, SHA256, output)
    assert len(server.ranges) == 1
    assert list(output.parent.iterdir()) == []


def test_unreachable(server, output):
    server.fail_with = [503] * fetching.TRIES
    with pytest.raises(InputError, match=r"cannot be downloaded \(503.*`mirror`"):
        fetch(server.url, SHA256, output)
    assert not output.exists()


def test_wrong_bytes(server, output):
    server.content = b"something else"
    with pytest.raises(InputError, match=f"{server.url}: the bytes are not those.*{SHA256}"):
        fetch(server.url, SHA256, output)
    assert list(output.parent.iterdir()) == []


def test_no_space(server, output, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(InputError, match="2.0 MB are needed and 1.0 MB are free"):
        fetch(server.url, SHA256, output)
    assert not output.exists()


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_paths(tmp_path, output, form):
    source = tmp_path / "with space.tgz"
    source.write_bytes(CONTENT)
    fetch(form.format(source).replace(" ", "%20" if "file" in form else " "), SHA256, output)
    assert output.read_bytes() == source.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("mirror", "place"),
    [
        (None, "https://example.org/a/images.tgz?x=1"),
        ("/mirror/", "/mirror/images.tgz"),
        ("http://mirror.example.org/b", "http://mirror.example.org/b/images.tgz"),
    ],
)
def test_mirror_has_the_file_of_the_same_name(mirror, place):
    assert mirrored("https://example.org/a/images.tgz?x=1", mirror) == place


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://x/a.tgz", "cannot fetch s3"),
        ("http://[::1/a", "no valid"),
        ("https://a..b/x.tgz", "cannot be fetched .* mend its address"),
        ("http://host:abc/x.tgz", "cannot be fetched .* mend its address"),
    ],
)
def test_addresses_of_no_use(address, words, output):
    with pytest.raises(InputError, match=words):
        fetch(address, SHA256, output)


@pytest.mark.parametrize("name", packaged.SHA256)
def test_packaged_sets_have_their_checksums(name, output):
    write = functools.partial(packaged.write_archive, name)
    fetching.verified(name, write, packaged.SHA256[name], output)
    assert output.stat().st_size > 1_000_000


class TestCommand:
    """The job fails with one line, and leaves no output."""

    def run(self, output: Path, *arguments: object, **options):
        options_of_job = ("--output", output, "--log", output.with_name("log"))
        return run_module("optstate.data.fetch", *arguments, *options_of_job, **options)

    def test_wrong_checksum(self, tmp_path, output):
        (tmp_path / "images.tgz").write_bytes(CONTENT)
        result = self.run(output, "--archive", tmp_path / "images.tgz", "--sha256", "0" * 64)
        assert_one_line(result, "images.tgz", "0" * 64, "mend")
        assert not output.exists()

    def test_the_checksum_stands_beside_the_archive(self, output):
        digest = packaged.SHA256["digits"]
        assert self.run(output, "--packaged", "digits", "--sha256", digest).returncode == 0
        check = subprocess.run(["sha256sum", "-c", "archive.sha256"], cwd=output.parent)
        assert check.returncode == 0

    def test_not_in_the_mirror(self, tmp_path, output):
        result = self.run(
            output, "--archive", "http://x/a.tgz", "--mirror", tmp_path, "--sha256", SHA256
        )
        assert_one_line(result, str(tmp_path / "a.tgz"), "mirror")

    def test_file_size_limit(self, tmp_path, output):
        (tmp_path / "images.tgz").write_bytes(CONTENT)
        result = self.run(
            output, "--archive", tmp_path / "images.tgz", "--sha256", SHA256,
            preexec_fn=limit_file_size,
        )  # fmt: skip
        assert_one_line(result, "ulimit -f")
        assert not output.exists()


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def test_interrupted_copy_leaves_no_output(tmp_path, output, monkeypatch):
    (tmp_path / "images.tgz").write_bytes(CONTENT)

    def interrupted(source, target):
        target.write_bytes(CONTENT[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        fetch(str(tmp_path / "images.tgz"), SHA256, output)
    assert not output.exists()
