"""Compiles the CPU kernels and keeps them on disk, so that no first start has to: `precompile MODEL...`."""

import sys

from services.engine.config import Device, EngineConfig
from services.engine.engine import Engine

if __name__ == "__main__":
    for model in sys.argv[1:]:
        Engine(EngineConfig(model=model, device=Device.CPU, num_threads=1, num_blocks=16, is_draft=True))
