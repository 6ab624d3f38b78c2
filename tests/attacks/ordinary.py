"""Ordinary calls, which attacks are made from. What has none here is attacked from an empty message on."""

import json
from collections.abc import Mapping

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from safetensors.numpy import save

from paceline.internal.v1 import (
    adapter_store_pb2,
    draft_pb2,
    model_server_pb2,
    prefix_cache_pb2,
    speculation_pb2,
    verifier_pb2,
)
from paceline.v1 import adapter_pb2, batch_pb2, inference_pb2, model_pb2, sampling_pb2
from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME, tensor_names
from services.prefix_cache.block import sealed

TENANT = "mallory"
NAMESPACE = f"tenant/{TENANT}"
MODEL = "target"
_DIGEST = "ab" * 32
_PROMPT = [5, 6, 7, 8] * 6
_SAMPLING = sampling_pb2.SamplingParams(seed=1, max_tokens=4)
_ACCESS = speculation_pb2.TenantAccess(namespace=NAMESPACE)
_OPEN = speculation_pb2.Open(
    model=MODEL,
    token_ids=_PROMPT,
    num_prompt_tokens=len(_PROMPT),
    sampling=_SAMPLING,
    max_draft_tokens=4,
    tenant=_ACCESS,
)
_ANCHOR = speculation_pb2.Anchor(position=len(_PROMPT), digest=extend_digest(EMPTY_DIGEST, _PROMPT))
_PROPOSAL = speculation_pb2.Proposal(anchor=_ANCHOR, token_ids=[1, 2, 3], confidences=b"\x80\x80\x80")
_COMMIT = speculation_pb2.Commit(anchor=_ANCHOR, token_ids=[9, 10], num_accepted=1, num_drafted=3, num_wanted=4)
_LAYERS = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
_CONFIG = json.dumps(
    {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": MODEL, "r": 4, "lora_alpha": 8,
        "target_modules": ["q_proj"],
    }
).encode()  # fmt: skip
_WEIGHTS = save(
    {
        name: np.full(shape, 0.01, np.float32)
        for layer in _LAYERS
        for name, shape in zip(tensor_names(layer), ((4, 64), (64, 4)), strict=True)
    }
)
_FILES = [
    adapter_pb2.AdapterFile(name=CONFIG_NAME, num_bytes=len(_CONFIG)),
    adapter_pb2.AdapterFile(name=WEIGHTS_NAME, num_bytes=len(_WEIGHTS)),
]
_LINE = json.dumps(
    {
        "custom_id": "a", "method": "POST", "url": "/v1/completions",
        "body": {"model": MODEL, "prompt": "def f(", "max_tokens": 4, "seed": 1},
    }
).encode()  # fmt: skip
_UPLOAD = adapter_pb2.AdapterUpload(name="mine", files=_FILES, replace=True)
_BASE = adapter_store_pb2.AdapterBase(
    model=MODEL,
    modules=[model_server_pb2.AdapterModule(name=name, in_features=64, out_features=64) for name in _LAYERS],
)
_HEADER = adapter_store_pb2.StoreAdapterHeader(namespace=NAMESPACE, upload=_UPLOAD, base=_BASE)
_BLOCK = sealed(b"k" * 32, b"block" * 100)
_PIECE = prefix_cache_pb2.BlockPiece(
    key=_BLOCK.key, block_bytes=_BLOCK.num_bytes, checksum=_BLOCK.checksum, data=bytes(_BLOCK.data)
)
_KEYS = [_BLOCK.key, b"l" * 32]


def adapter_upload(name: str) -> tuple[adapter_pb2.UploadAdapterRequest, ...]:
    """The messages of an upload: its announcement, and a file each."""
    upload = adapter_pb2.AdapterUpload(name=name, files=_FILES, replace=True)
    files = [adapter_pb2.UploadAdapterRequest(data=data) for data in (_CONFIG, _WEIGHTS)]
    return adapter_pb2.UploadAdapterRequest(upload=upload), *files


_PUBLIC: Mapping[str, tuple[Message, ...]] = {
    "InferenceService/Generate": (inference_pb2.GenerateRequest(prompt="def f(", sampling=_SAMPLING),),
    "InferenceService/Chat": (
        inference_pb2.ChatRequest(messages=[{"role": "user", "content": "hello"}], sampling=_SAMPLING),
    ),
    "InferenceService/Tokenize": (inference_pb2.TokenizeRequest(text="def f("),),
    "InferenceService/Detokenize": (inference_pb2.DetokenizeRequest(token_ids=_PROMPT),),
    "BatchService/CreateBatch": (
        batch_pb2.CreateBatchRequest(options=batch_pb2.BatchOptions(metadata={"a": "b"}), data=_LINE[:40]),
        batch_pb2.CreateBatchRequest(data=_LINE[40:]),
    ),
    "ModelService/GetModel": (model_pb2.GetModelRequest(model=MODEL),),
    "AdapterService/UploadAdapter": adapter_upload("mine"),
    "AdapterService/GetAdapter": (adapter_pb2.GetAdapterRequest(name="mine"),),
    "AdapterService/DeleteAdapter": (adapter_pb2.DeleteAdapterRequest(name="mine"),),
}
_INTERNAL: Mapping[str, tuple[Message, ...]] = {
    "VerifierService/Verify": (
        verifier_pb2.VerifyRequest(open=_OPEN),
        verifier_pb2.VerifyRequest(proposal=_PROPOSAL),
    ),
    "DraftService/Propose": (
        draft_pb2.ProposeRequest(open=_OPEN),
        draft_pb2.ProposeRequest(commit=_COMMIT),
    ),
    "ModelServerService/PrefetchAdapter": (
        model_server_pb2.PrefetchAdapterRequest(adapter_digest=_DIGEST, tenant=_ACCESS),
    ),
    "PrefixCacheService/MatchBlocks": (prefix_cache_pb2.MatchBlocksRequest(namespace=NAMESPACE, keys=_KEYS),),
    "PrefixCacheService/FetchBlocks": (prefix_cache_pb2.FetchBlocksRequest(namespace=NAMESPACE, keys=_KEYS),),
    "PrefixCacheService/StoreBlocks": (prefix_cache_pb2.StoreBlocksRequest(namespace=NAMESPACE, piece=_PIECE),) * 2,
    "PrefixCacheService/GetNamespaceStatistics": (prefix_cache_pb2.GetNamespaceStatisticsRequest(namespace=NAMESPACE),),
    "PrefixCacheService/DeleteNamespace": (prefix_cache_pb2.DeleteNamespaceRequest(namespace=NAMESPACE),),
    "AdapterStoreService/StoreAdapter": (
        adapter_store_pb2.StoreAdapterRequest(header=_HEADER),
        adapter_store_pb2.StoreAdapterRequest(data=_CONFIG),
        adapter_store_pb2.StoreAdapterRequest(data=_WEIGHTS),
    ),
    "AdapterStoreService/ResolveAdapter": (adapter_store_pb2.ResolveAdapterRequest(namespace=NAMESPACE, name="mine"),),
    "AdapterStoreService/ListStoredAdapters": (adapter_store_pb2.ListStoredAdaptersRequest(namespace=NAMESPACE),),
    "AdapterStoreService/RemoveAdapter": (adapter_store_pb2.RemoveAdapterRequest(namespace=NAMESPACE, name="mine"),),
    "AdapterStoreService/FetchAdapter": (adapter_store_pb2.FetchAdapterRequest(namespace=NAMESPACE, digest=_DIGEST),),
}
_HEALTH = (health_pb2.HealthCheckRequest(service="grpc.health.v1.Health"),)
_REFLECTION = (
    reflection_pb2.ServerReflectionRequest(list_services="*"),
    reflection_pb2.ServerReflectionRequest(file_by_filename="paceline/v1/model.proto"),
)
_ORDINARY = {
    **{f"paceline.v1.{name}": messages for name, messages in _PUBLIC.items()},
    **{f"paceline.internal.v1.{name}": messages for name, messages in _INTERNAL.items()},
    "grpc.health.v1.Health/Check": _HEALTH,
    "grpc.health.v1.Health/Watch": _HEALTH,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _REFLECTION,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _REFLECTION,
}


def ordinary(method: str) -> tuple[bytes, ...]:
    """The messages of an ordinary call of a method."""
    return tuple(message.SerializeToString() for message in _ORDINARY.get(method, ())) or (b"",)
