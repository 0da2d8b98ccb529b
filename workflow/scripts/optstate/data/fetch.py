"""Fetch and verify a data set's archive from a URL, a path, a mirror or an installed package."""

import argparse
import functools
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import requests
from tqdm import tqdm

from optstate.data import packaged
from optstate.data.manifest import file_sha256
from optstate.job import InputError, hold_lock, require_space, run, write_atomically

CHUNK_BYTES = 1 << 16  # most bytes lost when a connection breaks
TIMEOUT_SECONDS = 30
MAX_FAILURES = 6  # consecutive failures before giving up; new data restarts the count
BACKOFF_SECONDS = 1.0  # wait after the first failure, doubled after each further one
TRANSIENT_STATUSES = (requests.codes.request_timeout, requests.codes.too_many_requests)


def main(arguments: argparse.Namespace) -> None:
    """Write the verified archive to ``--output``, and its checksum to ``{output}.sha256``."""
    output = arguments.output
    with hold_lock(output.with_name(".fetch.lock")):
        if arguments.packaged:
            write = functools.partial(packaged.write_archive, arguments.packaged)
            fetch_verified(f"packaged {arguments.packaged}", write, arguments.sha256, output)
        else:
            source = resolve_mirror(arguments.archive, arguments.mirror)
            fetch(source, arguments.sha256, output)
        with write_atomically(output.with_name(output.name + ".sha256")) as path:
            path.write_text(f"{arguments.sha256}  {output.name}\n")


def resolve_mirror(archive: str, mirror: str | None) -> str:
    """Return the address of ``archive`` in ``mirror``; without a mirror, ``archive`` itself."""
    if mirror is None:
        return archive
    name = Path(_parse_address(archive).path).name
    if _parse_address(archive).scheme and not _parse_address(mirror).scheme:
        name = unquote(name)
    return f"{mirror.rstrip('/')}/{name}"


def fetch(source: str, sha256: str, output: Path) -> None:
    """Copy ``source``, a URL or path, to ``output``, which appears only after verification.

    An interrupted download leaves ``{output}.part``, from which the next call continues.

    Raises:
        InputError: the source does not exist, cannot be reached, or has a different SHA-256.
    """
    url = _parse_address(source)
    if url.scheme in ("http", "https"):
        # If an existing part is damaged, download once more from the first byte.
        num_tries = 2 if _get_partial_path(output).exists() else 1
        fetch_verified(source, functools.partial(download, source), sha256, output, num_tries)
    elif url.scheme in ("", "file"):
        path = Path(unquote(url.path) if url.scheme else source)
        fetch_verified(source, functools.partial(copy, path), sha256, output)
    else:
        raise InputError(
            f"{source}: {url.scheme} addresses are not supported. Use https, http, file or a path."
        )


def fetch_verified(
    name: str, write: Callable[[Path], None], sha256: str, output: Path, num_tries: int = 1
) -> None:
    """Call ``write`` with ``{output}.part``, verify that file and rename it to ``output``.

    Args:
        name: the archive's name in messages.
        write: writes the archive to the path that it is called with.
        sha256: the expected SHA-256, as 64 hexadecimal digits.
        output: the path of the verified archive.
        num_tries: how often to write the file if its SHA-256 differs.

    Raises:
        InputError: ``write`` found a malformed address, or the file has a different SHA-256. Such
            a file is removed.
    """
    partial = _get_partial_path(output)
    for _ in range(num_tries):
        try:
            write(partial)
        except ValueError as error:  # the address or the server's answer is malformed
            raise InputError(
                f"{name}: cannot be fetched ({error}). Correct its address."
            ) from error
        actual = file_sha256(partial)
        if actual == sha256:
            with write_atomically(output) as temporary:
                partial.rename(temporary)
            logging.info("verified %s: sha256 %s", name, sha256)
            return
        partial.unlink()
    raise InputError(
        f"{name}: its SHA-256 is {actual}, but {sha256} is expected. "
        "Correct the archive, its address or its `sha256` in the configuration."
    )


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
        InputError: the server refuses, or ``MAX_FAILURES`` attempts in a row failed without data.
    """
    num_failures = 0
    while True:
        size = _get_size(partial)
        try:
            _download_rest(url, partial)
            return
        except requests.RequestException as error:
            if isinstance(error, ValueError):
                raise  # the address is malformed
            num_failures = num_failures + 1 if _get_size(partial) == size else 1
            if num_failures == MAX_FAILURES:
                raise InputError(
                    f"{url}: cannot be downloaded ({_explain(error)}). Check the network, or set "
                    "`mirror` to a folder or address that has the archive."
                ) from error
            position = _get_size(partial)
            logging.info("%s: %s: continuing at byte %d", url, _explain(error), position)
            time.sleep(BACKOFF_SECONDS * 2 ** (num_failures - 1))


def _download_rest(url: str, partial: Path) -> None:
    """Append the missing bytes of ``url`` to ``partial``.

    Raises:
        requests.RequestException: a transient failure, or a malformed address.
        InputError: a permanent failure.
    """
    size = _get_size(partial)
    # A compressed transfer cannot be continued at a byte of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{size}":
                return  # the file is complete
            partial.unlink()  # the file is longer than the archive: start again
        elif 400 <= response.status_code < 500 and response.status_code not in TRANSIENT_STATUSES:
            raise InputError(
                f"{url}: the server answers {response.status_code} {response.reason}. "
                "Correct the address of `archive` or `mirror`."
            )
        response.raise_for_status()
        _save(response, Path(urlsplit(url).path).name, partial)


def _save(response: requests.Response, name: str, partial: Path) -> None:
    """Write the body of ``response`` to ``partial``, and show a progress bar with ``name``.

    A requested range is appended. A whole file replaces ``partial``.

    Raises:
        requests.ConnectionError: the body is shorter than the server announced.
    """
    is_range = response.status_code == requests.codes.partial_content
    start = _get_size(partial) if is_range else 0
    announced = int(response.headers.get("Content-Length", 0))
    require_space(partial.parent, announced)
    with (
        partial.open("ab" if is_range else "wb") as file,
        tqdm(
            desc=f"download {name}",
            initial=start,
            total=start + announced or None,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):
        for chunk in response.iter_content(CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
    if announced and _get_size(partial) < start + announced:
        raise requests.ConnectionError("the connection broke")


def _parse_address(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise InputError(f"{address}: invalid address ({error}). Correct it.") from error


def _get_partial_path(output: Path) -> Path:
    return output.with_name(output.name + ".part")


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
PARSER.add_argument("--sha256", required=True, help="expected SHA-256 of the archive")
PARSER.add_argument("--output", type=Path, required=True, help="path of the archive to write")

if __name__ == "__main__":
    run(PARSER, main)
