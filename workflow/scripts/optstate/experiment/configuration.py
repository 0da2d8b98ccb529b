"""Load and validate an experiment's configuration, and derive each session's settings from it."""

import copy
import dataclasses
import math
from pathlib import Path

from optstate import UNINTERRUPTED
from optstate.data import packaged
from optstate.experiment.runs import Runs, Session, split_method
from optstate.experiment.schema import Config, conform, suggest
from optstate.experiment.yaml_files import read_yaml
from optstate.job import InputError
from optstate.training.spec import SessionSpec

ROOT = Path(__file__).parents[4]
DEFAULT = ROOT / "config/config.yaml"
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"

KEYS_OF_KIND = {
    "constant": {"lr"},
    "onecycle": {"initial_lr", "max_lr"},
    "cosine": {"lr", "final_lr"},
    "warmup": {"lr", "warmup_steps"},
}
SOURCES = ("archive", "folder", "packaged")


def load(*overlays: Path | Config) -> Config:
    """Read the default configuration with ``overlays`` merged into it, as Snakemake merges them.

    Args:
        overlays: paths of YAML files, or mappings; later ones take precedence.

    Raises:
        InputError: the configuration is not valid.
    """
    config: Config = {}
    for overlay in (DEFAULT, *overlays):
        merge(config, read_yaml(overlay) if isinstance(overlay, Path) else copy.deepcopy(overlay))
    return validate(config)


def merge(config: Config, overlay: Config) -> None:
    """Merge ``overlay`` into ``config``, in place: mappings recursively, other values replaced."""
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value


def validate(given: Config) -> Config:
    """Validate a configuration, and return it with the types of the schema.

    Args:
        given: the configuration as read from YAML and the command line.

    Raises:
        InputError: one line that names the key, its value, and the fix.
    """
    config = conform(given, SCHEMA)
    for boundary in config["boundaries"].values():
        if not boundary.get("reshuffle"):  # the same as leaving it out
            boundary.pop("reshuffle", None)
    require_consistent(config)
    return config


def require_consistent(config: Config) -> None:
    """Check the conditions that a schema cannot express.

    Raises:
        InputError: one line that names the key, its value, and the fix.
    """
    for name, source in config["datasets"].items():
        _require_one_source(f"datasets.{name}", source)
    for name, schedule in config["schedules"].items():
        _require_values(f"schedules.{name}", schedule, len(config["sessions"]))
    if UNINTERRUPTED in config["boundaries"]:
        raise InputError(
            f"boundaries.{UNINTERRUPTED}: this name is reserved for runs without a boundary. "
            "Choose another."
        )
    known = {
        "schedules": list(config["schedules"]),
        "boundaries": [*config["boundaries"], UNINTERRUPTED],
    }
    for method in config["methods"]:
        for part, section in zip(split_method(method), known, strict=True):
            if part not in known[section]:
                raise InputError(
                    f"methods: {method!r} must be SCHEDULE-BOUNDARY, and `{section}` has no "
                    f"{part!r}. {suggest(part, known[section])}"
                )
    primary = config["primary"]["boundary"]
    if primary not in known["boundaries"]:
        raise InputError(
            f"primary.boundary: `boundaries` has no {primary!r}. "
            f"{suggest(primary, known['boundaries'])}"
        )
    if config["weights"] and not Path(config["weights"]).is_file():
        raise InputError(f"weights: {config['weights']} is not a file. Correct the path.")


def _require_one_source(key: str, source: dict[str, str]) -> None:
    kinds = [kind for kind in SOURCES if kind in source]
    if len(kinds) != 1:
        raise InputError(
            f"{key}: has {' and '.join(kinds) or 'no source'}. Give exactly one of archive (with "
            "sha256), folder and packaged, and set the others to null."
        )
    if kinds == ["archive"] and "sha256" not in source:
        raise InputError(f"{key}.sha256: missing. `sha256sum ARCHIVE` prints it.")
    if kinds != ["archive"] and "sha256" in source:
        raise InputError(f"{key}.sha256: belongs to an archive. Set it to null.")
    if "folder" in source and not Path(source["folder"]).is_dir():
        raise InputError(f"{key}.folder: {source['folder']} {_explain_missing(source['folder'])}")


def _explain_missing(path: str) -> str:
    """Return words that say that a folder does not exist, and suggest a similar one next to it."""
    parent = Path(path).parent
    siblings = (
        [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    )
    close = suggest(Path(path).name, siblings) if siblings else ""
    if close.startswith("Did you mean"):
        return f"does not exist. {close}"
    return "does not exist. Correct the path."


def _require_values(key: str, schedule: Config, num_sessions: int) -> None:
    """Check that a schedule has the keys of its kind, and a finite value for every session."""
    needed = KEYS_OF_KIND[schedule["kind"]]
    given = schedule.keys() - {"kind", "optimizer"}
    for name in sorted(needed ^ given):
        fault = "missing" if name in needed else "not a key of this kind"
        raise InputError(f"{key}.{name}: {fault}. {schedule['kind']} takes {sorted(needed)}.")
    for name in sorted(needed):
        if len(schedule[name]) != num_sessions:
            raise InputError(
                f"{key}.{name}: {len(schedule[name])} values, but there are {num_sessions} "
                "`sessions`. Give one for each."
            )
        for index, value in enumerate(schedule[name]):
            if not math.isfinite(value):
                raise InputError(f"{key}.{name}[{index}]: {value} must be finite.")


def archive_sha256(source: dict[str, str]) -> str:
    """Return the expected SHA-256 of a data set's archive, as 64 hexadecimal digits."""
    return packaged.SHA256[source["packaged"]] if "packaged" in source else source["sha256"]


def targets(config: Config) -> dict[str, float]:
    """Return the target valid top-1, a fraction, of each data set that has one."""
    datasets = config["datasets"].items()
    return {name: source["target_top1"] for name, source in datasets if "target_top1" in source}


def all_runs(config: Config) -> Runs:
    """Return the runs of an experiment."""
    return Runs(
        datasets=sorted(config["datasets"]),
        methods=sorted(config["methods"]),
        seeds=sorted(config["seeds"]),
        num_sessions=len(config["sessions"]),
    )


def baselines(config: Config) -> dict[str, str]:
    """Return the baseline of each boundary: usually the boundary that keeps nothing.

    The baseline of a boundary with ``reshuffle`` is the boundary that is the same in everything
    else, if there is one. Their difference is noise.
    """
    boundaries = config["boundaries"]
    straight = {name: b for name, b in boundaries.items() if not b.get("reshuffle")}
    twins = {
        name: [twin for twin, b in straight.items() if b | {"reshuffle": True} == boundary]
        for name, boundary in boundaries.items()
    }
    usual = plain_boundary(config, keep=[], usual="new")
    return {UNINTERRUPTED: usual} | {name: min(twins[name], default=usual) for name in boundaries}


def plain_boundary(config: Config, keep: str | list[str], usual: str) -> str:
    """Return the name of the boundary that has no option but ``keep``.

    Of several, return ``usual`` if it is one of them, and the first by name otherwise. If there is
    none, return ``usual``.
    """
    names = sorted(name for name, b in config["boundaries"].items() if b == {"keep": keep})
    return usual if usual in names or not names else names[0]


def session_spec(
    config: Config, session: Session, weights_sha256: str | None = None
) -> SessionSpec:
    """Return a session's settings: all that its results depend on except its input files.

    Args:
        config: the validated configuration.
        session: a session of the experiment.
        weights_sha256: the SHA-256 of the file ``weights``, from which the first session starts.
    """
    index = session.number - 1
    schedule = config["schedules"][session.schedule]
    crossed: Config = config["boundaries"][session.boundary] if index else {}
    if isinstance(crossed.get("keep"), list):
        crossed = crossed | {"keep": sorted(crossed["keep"])}
    all_epochs = sum(config["sessions"])
    given = config | crossed | {
        "dataset": session.dataset,
        "schedule": session.schedule,
        "boundary": session.boundary,
        "method": session.name,
        "seed": session.seed,
        "session": session.number,
        "num_epochs": all_epochs if session.is_whole_run else config["sessions"][index],
        "weights_sha256": None if index else weights_sha256,
        "optimizer": schedule.get("optimizer", config["optimizer"]),
        "learning_rate": {"kind": schedule["kind"]}
        | {key: schedule[key][index] for key in sorted(KEYS_OF_KIND[schedule["kind"]])},
    }  # fmt: skip
    names = [field.name for field in dataclasses.fields(SessionSpec)]
    return SessionSpec(**{name: given[name] for name in names if name in given})
