"""Runs the prefix-cache: `paceline serve prefix-cache`."""

from services.common.server import serve
from services.prefix_cache.lifespan import prefix_cache_lifespan
from services.prefix_cache.settings import PrefixCacheSettings

if __name__ == "__main__":
    settings = PrefixCacheSettings.load_or_end()
    serve("prefix-cache", settings, prefix_cache_lifespan(settings))
