"""The forward of a model's own modules, by whether they take our attention or bring theirs."""

from services.engine.forward import Forward
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora
from services.engine.model import LoadedModel
from services.engine.torch_forward.alone import AloneForward
from services.engine.torch_forward.forward import TorchForward


def own_forward(loaded: LoadedModel, kv_cache: KVCache, adapters: Lora | None = None) -> Forward:
    """What computes a model with its own modules."""
    kind = AloneForward if loaded.attends_itself else TorchForward
    return kind(loaded, kv_cache, adapters)
