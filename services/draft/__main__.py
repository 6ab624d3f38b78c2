"""Runs the draft: `paceline serve draft`."""

from services.common.server import serve
from services.draft.settings import DraftSettings
from services.model_server.preflight import preflight

if __name__ == "__main__":
    settings = DraftSettings.load_or_end()
    preflight(settings.engine)
    # With it comes all that is heavy.
    from services.draft.lifespan import draft_lifespan

    serve("draft", settings, draft_lifespan(settings))
