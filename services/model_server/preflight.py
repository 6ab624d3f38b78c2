"""What a process with an engine looks at before it loads anything."""

import sys

from services.common.checkpoint import CheckpointError, check_model
from services.model_server.settings import ModelServerSettings


def preflight(settings: ModelServerSettings) -> None:
    """Ends the process with a sentence when its model certainly cannot be served."""
    try:
        check_model(settings.engine.model, trust_remote_code=settings.engine.trust_remote_code)
    except CheckpointError as error:
        sys.exit(str(error))
