"""Prints what an extra of pyproject.toml takes, a line each: so that an image can have it before our own code."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]


def requirements(extra: str) -> list[str]:
    """What an extra takes, with the extras that it includes."""
    found = []
    for line in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[([\w-]+)\]", line)
        found += requirements(own[1]) if own else [line]
    return found


sys.stdout.write("\n".join([*project["dependencies"], *requirements(sys.argv[2])]) + "\n")
