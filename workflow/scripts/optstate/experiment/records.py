"""Make sessions stale that Snakemake's records do not describe, though it would not notice."""

import json
import os
from pathlib import Path
from typing import Any

from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from optstate.checksums import file_sha256
from optstate.experiment.changes import read_made_by
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
        output = IOFile(str(rows[folder]))
        record = records.metadata(output)
        if (
            record is None
            or (folder in unsure and record.endtime < rows[folder].stat().st_mtime)
            # The record says that the session has the present settings, and the session differs.
            or (folder in others and repr(specs[folder].to_json()) in record.params)
        ):
            records.cleanup_metadata(output)  # of an earlier version of the file
            os.utime(rows[folder], (1, 1))  # 1970: older than every input


def _differs(session: Path, key: str, expected: Any) -> bool:
    """Whether a session was made by something else. If one of both is not known, it was not."""
    found = read_made_by(session, key)
    return None not in (found, expected) and found != expected
