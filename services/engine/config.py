"""Configuration of an engine: plain values, decided once at start."""

from dataclasses import dataclass
from enum import StrEnum


class Device(StrEnum):
    """Where a model runs; `auto` takes a GPU when there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """Data type of the weights; `auto` takes what the checkpoint was saved in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All that shapes an engine. Counts are tokens unless the name says otherwise."""

    model: str
    """Folder or hub id of a causal language model that `transformers` loads."""
    device: Device = Device.AUTO
    dtype: Dtype = Dtype.AUTO
    num_threads: int | None = None
    """CPU threads of one forward; None takes all cores."""
    max_context_tokens: int | None = None
    """Prompt and output together; None takes the model's own limit."""
    max_step_tokens: int = 512
    """Most rows of one forward."""
    max_sequences: int = 64
    """Most sequences that hold KV blocks at once; others wait."""
    block_size: int = 16
    """Tokens of one KV block."""
    kv_bytes: int = 1 << 30
    """Memory for KV blocks, in bytes."""
    num_blocks: int | None = None
    """Overrides kv_bytes when set."""
    trust_remote_code: bool = False
    max_adapters: int = 0
    """Adapter slots: adapters that one step may mix; 0 takes none."""
    max_adapter_rank: int = 64
    is_draft: bool = False
    """Whether results are guesses that another model checks: speed then goes before exact rounding."""
