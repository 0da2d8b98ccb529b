"""Make sessions stale that Snakemake's records do not describe, though it would not notice."""

import json
import os
from pathlib import Path

from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from optstate.experiment.changes import read_settings
from optstate.experiment.lock import is_held
from optstate.training.spec import SessionSpec


def distrust_sessions(results: Path, specs: dict[str, SessionSpec]) -> None:
    """Make sessions stale that ended without a record, or were exchanged.

    On a cluster, jobs continue when Snakemake is killed. It would later notice no change of the
    configuration in what they wrote. They run again from their last state, which still exists, in
    seconds. A session that was exchanged for one with other settings is trained again. No result is
    removed, so a dry run may do this.

    Args:
        results: the experiment's results.
        specs: the settings of each session, by its folder below ``runs`` and ``in_progress``.
    """
    rows = {folder: results / "runs" / folder / "steps.csv" for folder in specs}
    ended = [folder for folder in specs if rows[folder].exists()]
    unsure = {folder for folder in ended if (results / "in_progress" / folder).is_dir()}
    others = {folder for folder in ended if _has_others(rows[folder].parent, specs[folder])}
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


def _has_others(session: Path, spec: SessionSpec) -> bool:
    """Whether a session was made with other settings. Without a record of them, it is not known."""
    settings = read_settings(session)
    return settings is not None and settings != json.loads(spec.to_json())
