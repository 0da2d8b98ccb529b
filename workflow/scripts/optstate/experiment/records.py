"""Make sessions and tables stale that Snakemake would wrongly take for finished ones."""

import json
import os
from pathlib import Path
from typing import Any

from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from optstate.checksums import file_sha256, hash_files, read_checksums
from optstate.experiment.changes import read_value
from optstate.experiment.lock import is_held
from optstate.training.spec import SessionSpec


def distrust_sessions(results: Path, specs: dict[str, SessionSpec], cards: dict[str, Path]) -> None:
    """Make sessions stale that ended without a record, or were exchanged.

    On a cluster, jobs continue when Snakemake is killed. It would later notice no change of the
    configuration in what they wrote. They run again from their last state, which still exists, in
    seconds. A session that was exchanged for one with other settings or other images is trained
    again. No result is removed, so a dry run may do this.

    Args:
        results: the experiment's results.
        specs: the settings of each session, by its folder below ``runs`` and ``in_progress``.
        cards: the ``dataset.json`` of each data set.
    """
    hashes = {dataset: file_sha256(card) for dataset, card in cards.items() if card.exists()}
    rows = {folder: results / "runs" / folder / "steps.csv" for folder in specs}
    ended = [folder for folder in specs if rows[folder].exists()]
    unsure = {folder for folder in ended if (results / "in_progress" / folder).is_dir()}
    others = {
        folder
        for folder in ended
        if _differs(rows[folder].parent, "configuration", json.loads(specs[folder].to_json()))
        or _differs(rows[folder].parent, "dataset_sha256", hashes.get(specs[folder].dataset))
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


def distrust_tables(results: Path) -> None:
    """Make the tables in the folder ``results`` stale if they were not made from its sessions."""
    folder = results / "tables"
    listed = {folder / name: sha for name, sha in read_checksums(folder).items() if "/" in name}
    present = [path for path in listed if path.is_file()]  # a missing session is trained again
    is_same = hash_files(present) == [listed[path] for path in present]
    if not listed or (present and is_same):
        return
    if not any(map(is_held, results.glob(".lock"))):
        records = FilePersistence(nolock=True)
        for table in folder.glob("*.csv"):
            _make_stale(table, records)


def _make_stale(output: Path, records: FilePersistence) -> None:
    """Make Snakemake run the job that made ``output`` again."""
    records.cleanup_metadata(IOFile(str(output)))  # of an earlier version of the file
    os.utime(output, (1, 1))  # 1970: older than every input


def _differs(session: Path, key: str, expected: Any) -> bool:
    """Whether a session was made by something else. If one of both is not known, it was not."""
    found = read_value(session / "made_by.json", key)
    return None not in (found, expected) and found != expected
