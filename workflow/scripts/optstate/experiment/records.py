"""Make results stale that Snakemake would wrongly take for finished ones."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from optstate.checksums import SUFFIX, file_sha256, hash_files, read_checksums, read_listing
from optstate.experiment.changes import read_configuration, read_value
from optstate.experiment.lock import is_held
from optstate.experiment.plan import compare_settings
from optstate.experiment.schema import Config
from optstate.training.spec import SessionSpec

# The files that each of these listings must have, without their suffixes .sha256.
LISTED = {
    "report": ("report.html", "answer.txt", "configuration.yaml"),
    "tables/collect": ("tables/steps.csv", "tables/epochs.csv", "tables/summary.csv"),
    "tables/boundaries": ("tables/boundaries.csv",),
    "tables/compare": ("tables/pairs.csv", "tables/comparisons.csv"),
}


def distrust_sessions(
    results: Path,
    specs: dict[str, SessionSpec],
    cards: dict[str, Path],
    previous: dict[str, str],
    followed: dict[str, str],
) -> None:
    """Make sessions stale that ended without a record, or were exchanged.

    On a cluster, jobs continue when Snakemake is killed. It would later notice no change of the
    configuration in what they wrote. They run again from their last state, which still exists, in
    seconds. A session that was exchanged for one with other settings, other images, another
    previous session or other step sizes is trained again. No result is removed, so a dry run may do
    this.

    Args:
        results: the experiment's results.
        specs: the settings of each session, by its folder below ``runs`` and ``in_progress``.
        cards: the ``dataset.json`` of each data set.
        previous: for each later session, the folder of the session that it continues from.
        followed: for each session with ``step_size``, the folder of the session whose norms it has.
    """
    runs = results / "runs"
    hashes = {dataset: file_sha256(card) for dataset, card in cards.items() if card.exists()}
    rows = {folder: runs / folder / "steps.csv" for folder in specs}
    ended = [folder for folder in specs if rows[folder].exists()]
    unsure = {folder for folder in ended if (results / "in_progress" / folder).is_dir()}
    others = {
        folder
        for folder in ended
        if _differs(rows[folder].parent, "configuration", json.loads(specs[folder].to_json()))
        or _differs(rows[folder].parent, "dataset_sha256", hashes.get(specs[folder].dataset))
        or _differs(rows[folder].parent, "previous_sha256", _find_rows(runs, previous.get(folder)))
        or _differs(
            rows[folder].parent, "step_sizes_sha256", _find_rows(runs, followed.get(folder))
        )
    }
    if not unsure | others or any(map(is_held, results.glob(".lock"))):
        return
    records = FilePersistence(nolock=True)
    for folder in unsure | others:
        record = records.metadata(IOFile(str(rows[folder])))
        if (
            record is None
            or (folder in unsure and record.endtime < rows[folder].stat().st_mtime)
            # The record says that the session has the present settings, and the session differs.
            or (folder in others and repr(specs[folder].to_json()) in record.params)
        ):
            _make_stale(rows[folder], records)


def count_unrecorded(results: Path, folders: Iterable[str]) -> int:
    """Return how many sessions have finished, if Snakemake has a record of none of them; else 0."""
    records = FilePersistence(nolock=True)
    rows = [results / "runs" / folder / "steps.csv" for folder in folders]
    ended = [path for path in rows if path.exists()]
    return 0 if any(records.metadata(IOFile(str(path))) for path in ended) else len(ended)


def distrust_analysis(results: Path, config: Config) -> None:
    """Make tables, figures and the report stale that were not made from what is there now.

    Args:
        results: the experiment's results.
        config: the present configuration.
    """
    if any(map(is_held, results.glob(".lock"))):
        return
    records = FilePersistence(nolock=True)
    is_changed = any(compare_settings(read_configuration(results) or config, config))
    for pattern in ("report", "tables/*", "figures/*", "figures/*/*"):
        for listing in results.glob(pattern + SUFFIX):
            listed = {listing.parent / name for name in read_listing(listing) if "/" not in name}
            name = str(listing.relative_to(results).with_suffix(""))
            required = {results / output for output in LISTED.get(name, ())}
            is_current = required <= listed and _has_inputs(listing)
            for output in filter(Path.is_file, required | listed):
                # Without a record, Snakemake would not notice the change of the configuration.
                if not is_current or (is_changed and not records.metadata(IOFile(str(output)))):
                    _make_stale(output, records)


def _has_inputs(listing: Path) -> bool:
    """Whether the inputs in a listing are those that are there now.

    A missing table is made again, and then compared by Snakemake. If no session is there, the
    listing is that of other ones.
    """
    folder = listing.parent.resolve()
    inputs = {folder / name: sha for name, sha in read_listing(listing).items() if "/" in name}
    present = [path for path in inputs if path.is_file()]
    has_any = bool(present) or any(path.suffix != SUFFIX for path in inputs)
    return has_any and hash_files(present) == [inputs[path] for path in present]


def _find_rows(runs: Path, folder: str | None) -> str | None:
    """Return the listed SHA-256 of a session's ``steps.csv``, if there is such a session."""
    return read_checksums(runs / folder).get("steps.csv") if folder else None


def _make_stale(output: Path, records: FilePersistence) -> None:
    """Make Snakemake run the job that made ``output`` again."""
    records.cleanup_metadata(IOFile(str(output)))  # of an earlier version of the file
    os.utime(output, (1, 1))  # 1970: older than every input


def _differs(session: Path, key: str, expected: Any) -> bool:
    """Whether a session was made by something else. If one of both is not known, it was not."""
    found = read_value(session / "made_by.json", key)
    return None not in (found, expected) and found != expected
