"""Build hook: generates the Python stubs of the protos into the package that users import."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path) -> None:
    """Writes *_pb2.py, *_pb2_grpc.py and their .pyi into paceline/. Raises RuntimeError when protoc fails."""
    from grpc_tools import protoc

    protos = root / "protos"
    sources = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    outs = [f"--{kind}_out={root}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    includes = [f"-I{protos}", f"-I{files('grpc_tools') / '_proto'}"]
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
        if (Path(sys.executable).parent / f"protoc-gen-{name}").exists()
    ]
    if protoc.main(["protoc", *includes, *plugins, *outs, *sources]) != 0:
        raise RuntimeError("protoc failed")


class ProtoBuildHook(BuildHookInterface):
    """Generates stubs before every build, editable ones included."""

    def initialize(self, _version: str, _build_data: dict[str, Any]) -> None:
        """See hatchling's BuildHookInterface."""
        generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
