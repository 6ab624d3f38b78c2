"""Runs the gateway: `paceline serve gateway`."""

from gateway.lifespan import gateway_lifespan
from gateway.settings import GatewaySettings
from services.common.server import serve

if __name__ == "__main__":
    settings = GatewaySettings.load()
    serve("gateway", settings, gateway_lifespan(settings))
