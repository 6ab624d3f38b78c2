"""Runs the verifier: `paceline serve verifier`."""

from services.common.server import serve
from services.model_server.preflight import preflight
from services.verifier.settings import VerifierSettings

if __name__ == "__main__":
    settings = VerifierSettings.load_or_end()
    preflight(settings.engine, *filter(None, [settings.draft]))
    # With it comes all that is heavy.
    from services.verifier.lifespan import verifier_lifespan

    serve("verifier", settings, verifier_lifespan(settings))
