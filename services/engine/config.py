"""Configuration of an engine: plain values, decided once at start."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


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


class Weights(StrEnum):
    """In how many bits a forward on the CPU keeps and multiplies weights."""

    AUTO = "auto"
    DTYPE = "dtype"
    INT8 = "int8"


class Instructions(StrEnum):
    """What the CPU multiplies with; each includes those before it."""

    PORTABLE = "portable"
    AVX512 = "avx512"
    AMX = "amx"


class EngineConfig(BaseModel):
    """All that shapes an engine. Counts are tokens unless the name says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Folder or hub id of a causal language model that transformers loads.")
    device: Device = Field(Device.AUTO, description="auto takes a GPU when there is one.")
    dtype: Dtype = Field(Dtype.AUTO, description="Data type of the weights; auto takes the checkpoint's.")
    weights: Weights = Field(
        Weights.AUTO,
        description="int8 rounds weights and what they multiply to 8 bits; auto does so for drafts, not in float32.",
    )
    instructions: Instructions = Field(
        Instructions.AMX,
        description="Newest instructions that a CPU forward may use. All verifiers of a model must use the same.",
    )
    num_threads: int | None = Field(None, ge=1, description="CPU threads of one forward; default: all cores.")
    max_context_tokens: int | None = Field(None, ge=2, description="Prompt and output together; default: the model's.")
    max_step_tokens: int = Field(512, ge=1, description="Most rows of one forward.")
    max_sequences: int = Field(64, ge=1, description="Most sequences that hold KV blocks at once; others wait.")
    block_size: int = Field(16, ge=1, description="Tokens of one KV block; must divide 128.")
    kv_bytes: int = Field(1 << 30, ge=1, description="Memory for KV blocks, in bytes.")
    num_blocks: int | None = Field(None, ge=2, description="KV blocks, in place of kv_bytes.")
    trust_remote_code: bool = Field(False, description="Runs code that comes with a model. Only for models you trust.")
    max_adapters: int | None = Field(
        None, ge=0, description="Adapters that one step may mix, in slots; default: 8 with an adapter store, else none."
    )
    max_adapter_rank: int = Field(64, ge=1, description="Largest rank of an adapter.")
    is_draft: bool = Field(
        False, description="Results are guesses that another model checks: speed goes before exact rounding."
    )
