"""Read YAML files strictly: refuse what YAML 1.1 would silently read as something else."""

import re
from pathlib import Path
from typing import Any

import yaml

from optstate.job import InputError

OCTAL = re.compile(r"[-+]?0[0-7_]+")
BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class StrictLoader(yaml.SafeLoader):
    """A loader that refuses repeated keys, and octal and base-60 numbers."""


def _construct_mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Refuse a key that occurs twice: YAML would take the last value."""
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value)
        if name in seen:
            raise _fault(key, f"the key {name!r} occurs twice. Remove one.")
        seen.add(name)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


def _construct_number(loader: StrictLoader, node: yaml.ScalarNode) -> Any:
    """Refuse octal and base-60 numbers."""
    is_float = node.tag.endswith("float")
    number = (loader.construct_yaml_float if is_float else loader.construct_yaml_int)(node)
    if OCTAL.fullmatch(node.value) or BASE_60.fullmatch(node.value):
        raise _fault(
            node, f"YAML reads {node.value} as {number}. Write that number, or quote it as text."
        )
    return number


def _fault(node: yaml.Node, text: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=text, problem_mark=node.start_mark)


StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_number)
StrictLoader.add_constructor("tag:yaml.org,2002:float", _construct_number)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: one line that names the file, and the line in it where there is one.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        if error.problem == "found unconstructable recursive node":
            error.problem = "an alias refers to its own parent. Write it out."
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        fix = "" if str(error.problem).endswith(".") else ". Correct it."
        raise InputError(f"{where}: {error.problem}{fix}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({error}). Correct it.") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply. Write it with fewer levels.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a mapping of keys to values, such as `seeds: [0]`.")
    return content
