"""Runs the gateway: `paceline serve gateway`."""

import os
import sys

from gateway import heap
from gateway.lifespan import gateway_lifespan
from gateway.settings import GatewaySettings
from services.common.checkpoint import CheckpointError, check_tokenizer
from services.common.server import serve

if __name__ == "__main__":
    heap.keep_little()
    # What `transformers` has for tokenizers works without torch; where it finds torch it loads it, for nothing.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    settings = GatewaySettings.load_or_end()
    try:
        for model in settings.models:
            check_tokenizer(model.tokenizer)
    except CheckpointError as error:
        sys.exit(str(error))
    serve("gateway", settings, gateway_lifespan(settings))
