"""Runs the draft service: `python -m services.draft --model FOLDER_OR_HUB_ID`."""

from services.common.server import serve
from services.draft.lifespan import draft_lifespan
from services.draft.settings import DraftSettings

if __name__ == "__main__":
    settings = DraftSettings.load()
    serve("draft", settings, draft_lifespan(settings))
