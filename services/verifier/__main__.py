"""Runs the verifier: `paceline serve verifier`."""

from services.common.server import serve
from services.verifier.lifespan import verifier_lifespan
from services.verifier.settings import VerifierSettings

if __name__ == "__main__":
    settings = VerifierSettings.load()
    serve("verifier", settings, verifier_lifespan(settings))
