"""Runs the draft: `paceline serve draft`."""

from services.common.server import serve
from services.draft.lifespan import draft_lifespan
from services.draft.settings import DraftSettings

if __name__ == "__main__":
    settings = DraftSettings.load()
    serve("draft", settings, draft_lifespan(settings))
