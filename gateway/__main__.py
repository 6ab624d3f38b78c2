"""Runs the gateway: `python -m gateway --tokenizer FOLDER_OR_HUB_ID --verifiers 127.0.0.1:7102`."""

from gateway.lifespan import gateway_lifespan
from gateway.settings import GatewaySettings
from services.common.server import serve

if __name__ == "__main__":
    settings = GatewaySettings.load()
    serve("gateway", settings, gateway_lifespan(settings))
