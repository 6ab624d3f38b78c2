"""What a process with an engine looks at before it loads anything."""

import sys

from services.common.checkpoint import CheckpointError, check_model
from services.engine.config import EngineConfig


def preflight(*engines: EngineConfig) -> None:
    """Ends the process with a sentence when one of its models certainly cannot be served."""
    try:
        for engine in engines:
            check_model(engine.model, trust_remote_code=engine.trust_remote_code)
    except CheckpointError as error:
        sys.exit(str(error))
