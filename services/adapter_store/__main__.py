"""Runs the adapter-store: `paceline serve adapter-store`."""

from services.adapter_store.lifespan import adapter_store_lifespan
from services.adapter_store.settings import AdapterStoreSettings
from services.common.server import serve

if __name__ == "__main__":
    settings = AdapterStoreSettings.load_or_end()
    serve("adapter-store", settings, adapter_store_lifespan(settings))
