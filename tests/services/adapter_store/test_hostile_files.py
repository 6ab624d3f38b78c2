"""Whatever is uploaded is taken or refused with its reason; nothing is left behind, and memory stays bounded."""

import gzip
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from safetensors.numpy import save

from paceline.errors import from_call
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME, tensor_names
from support.adapters import MODULES, RANK, Store, config, contents, files, raw, running_store, tensors

GOOD_CONFIG, GOOD_WEIGHTS = files()
Q, Q_UP = tensor_names("model.layers.0.self_attn.q_proj")
V, V_UP = tensor_names("model.layers.1.self_attn.v_proj")
HEADER_LENGTH = struct.unpack("<Q", GOOD_WEIGHTS[:8])[0]
HEADER: dict[str, Any] = json.loads(GOOD_WEIGHTS[8 : 8 + HEADER_LENGTH])
DATA = GOOD_WEIGHTS[8 + HEADER_LENGTH :]


def configured(**changes: Any) -> tuple[bytes, bytes]:
    return json.dumps(config(**changes)).encode(), GOOD_WEIGHTS


def weighing(weights: bytes) -> tuple[bytes, bytes]:
    return GOOD_CONFIG, weights


def changed(change: Callable[[dict[str, Any]], object]) -> tuple[bytes, bytes]:
    """The good weights with some tensors changed."""
    made: dict[str, Any] = tensors()
    change(made)
    return weighing(save(made))


def header(change: Callable[[dict[str, Any]], object]) -> tuple[bytes, bytes]:
    """The good weights with another header."""
    copy = json.loads(json.dumps(HEADER))
    change(copy)
    return weighing(raw(copy, DATA))


def bits(dtype: str, number: int) -> tuple[bytes, bytes]:
    """Weights of two bytes a number, one of which has these bits."""
    entries: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors().items():
        values = np.full(tensor.size, 0x3C01, np.uint16)
        if name == V_UP:
            values[3] = number
        entries[name] = {
            "dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + values.nbytes],
        }  # fmt: skip
        data += values.tobytes()
    return weighing(raw(entries, data))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 20))
    return file.getvalue()


ONES = np.ones((RANK, 8), np.float32)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda made: made.__setitem__(name, value)


def set_entry(name: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda made: made[name].update(fields)


TWICE = json.dumps(HEADER)[:-1] + f', "{Q}": {json.dumps(HEADER[Q])}}}'
OFFSETS = HEADER[Q]["data_offsets"]
PREFIX = "base_model.model"
HOSTILE: dict[str, tuple[tuple[bytes, bytes], str]] = {
    "header longer than the file": (weighing(raw(b"{}", length=1 << 20)), WEIGHTS_NAME + ".*header should have"),
    "header of 2^63 bytes": (weighing(raw(b"{}", length=1 << 63)), "header should have 9223372036854775808"),
    "shorter than a length": (weighing(b"\1\2\3"), "header should have"),
    "header not JSON": (weighing(raw(b"{not json", DATA)), "not JSON"),
    "header a list": (weighing(raw([1, 2], DATA)), "not a JSON object"),
    "header nested deeply": (weighing(raw(b"[" * 50_000, DATA)), "not JSON"),
    "duplicate tensors": (weighing(raw(TWICE.encode(), DATA)), "occurs twice"),
    "overlapping offsets": (header(set_entry(V, data_offsets=OFFSETS)), "not safetensors"),
    "a hole in the data": (weighing(raw(HEADER, DATA + b"\0" * 64)), "not safetensors"),
    "data cut off": (weighing(raw(HEADER, DATA[:-16])), "not safetensors"),
    "a shape of 10^18": (header(set_entry(Q, shape=[10**9, 10**9])), "not safetensors"),
    "a shape of 10^30": (header(set_entry(Q, shape=[10**30, 1])), "not safetensors"),
    "a negative shape": (header(set_entry(Q, shape=[-4, 8])), "not safetensors"),
    "shape and offsets that disagree": (header(set_entry(Q, shape=[RANK, 9])), "not safetensors"),
    "offsets that run backwards": (header(set_entry(Q, data_offsets=OFFSETS[::-1])), "not safetensors"),
    "an unknown dtype": (header(set_entry(Q, dtype="F4")), "not safetensors"),
    "NaN in float32": (changed(lambda made: made[Q].__setitem__((1, 2), np.nan)), f"{Q} holds numbers"),
    "infinity in float32": (changed(lambda made: made[Q_UP].__setitem__((1, 2), np.inf)), f"{Q_UP} holds numbers"),
    "infinity in bfloat16": (bits("BF16", 0x7F80), f"{V_UP} holds numbers"),
    "NaN in bfloat16": (bits("BF16", 0xFFC0), f"{V_UP} holds numbers"),
    "NaN in float16": (bits("F16", 0x7E00), f"{V_UP} holds numbers"),
    "float64": (changed(put(Q, tensors()[Q].astype(np.float64))), f"{Q} must be F32, F16 or BF16, got F64"),
    "integers": (changed(put(Q, np.ones((RANK, 8), np.int32))), f"{Q} must be F32, F16 or BF16, got I32"),
    "swapped A and B": (
        changed(lambda made: made.update({Q: tensors()[Q].T.copy(), Q_UP: tensors()[Q_UP].T.copy()})),
        "A and B seem to be swapped",
    ),
    "a missing B": (changed(lambda made: made.pop(Q_UP)), f"{Q_UP} is missing; it must be"),
    "a missing layer": (changed(lambda made: (made.pop(V), made.pop(V_UP))), f"{V} is missing"),
    "an unknown layer": (changed(put(f"{PREFIX}.model.layers.9.q_proj.lora_A.weight", ONES)), "layers.9.*is no lora_A"),
    "a layer not targeted": (configured(target_modules=["q_proj", "down_proj"]), "not of a layer that target_mod"),
    "an adapter of the output layer": (changed(put(f"{PREFIX}.lm_head.lora_A.weight", ONES)), "lm_head.*not supported"),
    "an adapter of the embedding": (changed(put("embed_tokens.lora_embedding_A", ONES)), "embed.*not supported"),
    "a name with a path": (changed(put("../../etc/passwd", np.ones(3, np.float32))), "etc/passwd is no lora_A"),
    "another width": (changed(put(Q, np.ones((RANK, 16), np.float32))), r"must be \[4, 8\], got \[4, 16\]"),
    "another rank than said": (configured(r=RANK + 1), r"must be \[5, 8\], got \[4, 8\]"),
    "all of B zero": (changed(lambda made: [made[n].fill(0) for n in made if "lora_B" in n]), "would change nothing"),
    "all of A -0": (changed(lambda made: [made[n].fill(-0.0) for n in made if "lora_A" in n]), "would change nothing"),
    "a zip archive": (weighing(zipped()), "is a zip archive"),
    "a gzip archive": (weighing(gzip.compress(GOOD_WEIGHTS)), "is a gzip archive"),
    "a pickle": (weighing(pickle.dumps({"a": 1}, protocol=4)), "is a pickle, which is never read"),
    "a header full of metadata": (weighing(raw({**HEADER, "__metadata__": {"a": "x" * 10**6}}, DATA)), "at most 71680"),
    "an empty header": (weighing(raw({}, b"")), "is missing"),
    "metadata that is no text": (weighing(raw({**HEADER, "__metadata__": {"a": [1] * 9}}, DATA)), "not safetensors"),
    "a config that is no JSON": ((b"{", GOOD_WEIGHTS), CONFIG_NAME + ".*not JSON"),
    "a config that is a list": ((b"[]", GOOD_WEIGHTS), "must be a JSON object"),
    "a config nested deeply": ((b"[" * 30_000, GOOD_WEIGHTS), "nested too deeply"),
    "a config with NaN": ((json.dumps(config(lora_alpha=float("nan"))).encode(), GOOD_WEIGHTS), "NaN is no number"),
    "a config with bytes that are no text": ((b'{"r": "\xff\xfe"}', GOOD_WEIGHTS), "not JSON"),
    "duplicate keys": ((json.dumps(config())[:-1].encode() + b', "r": 4}', GOOD_WEIGHTS), "key r occurs twice"),
    "strings of 10 MB": (configured(revision="x" * 10_000_000), "more than the limit of 65536"),
    "rank 0": (configured(r=0), "from 1 to 64, got 0"),
    "rank -1": (configured(r=-1), "from 1 to 64, got -1"),
    "rank true": (configured(r=True), "from 1 to 64, got true"),
    "rank 65": (configured(r=65), "from 1 to 64, got 65"),
    "rank 1e99": (configured(r=10**99), "from 1 to 64"),
    "alpha 0": (configured(lora_alpha=0), "lora_alpha.*must be a number from"),
    "no rank": ((json.dumps({k: v for k, v in config().items() if k != "r"}).encode(), GOOD_WEIGHTS), "is missing"),
    "another method": (configured(peft_type="IA3"), 'must be "LORA"'),
    "another task": (configured(task_type="SEQ_CLS"), 'must be "CAUSAL_LM"'),
    "DoRA": (configured(use_dora=True), "use_dora.*not supported"),
    "biases": (configured(bias="all"), "biases are not supported"),
    "modules to save": (configured(modules_to_save=["lm_head"]), "modules_to_save.*not supported"),
    "a rank of a pattern that is not that of the weights": (configured(rank_pattern={"q_proj": 8}), r"must be \[8, "),
    "a rank of a pattern that is too large": (configured(rank_pattern={"q_proj": 65}), "rank_pattern.*from 1 to 64"),
    "an expression in a pattern": (configured(rank_pattern={".*q_proj": 4}), "rank_pattern.*by names of layers"),
    "an alpha of a pattern that is none": (configured(alpha_pattern={"q_proj": "x"}), "alpha_pattern.*numbers from"),
    "a pattern that is a list": (configured(alpha_pattern=["q_proj"]), "alpha_pattern.*by names of layers"),
    "PiSSA": (configured(init_lora_weights="pissa_niter_4"), "may change the weights of the base model"),
    "a key of the future": (configured(use_future_lora={"on": True}), "use_future_lora.*not supported"),
    "another base model": (configured(base_model_name_or_path="org/other"), "ignore_base_model"),
    "no base model": (configured(base_model_name_or_path=None), "is not set.*ignore_base_model"),
    "no layer that is there": (configured(target_modules=["nothing"]), "target_modules"),
    "a pattern that takes forever": (configured(target_modules="(model|m|o|d|.)*" * 9 + "!"), "takes too long"),
    "a pattern that takes all memory": (configured(target_modules="(?:.*?){999999999}x"), "too much memory"),
    "a pattern that is none": (configured(target_modules="(("), "no regular expression"),
    "a pattern of 10,000 characters": (configured(target_modules="a" * 10_000), "1000 characters"),
}  # fmt: skip


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with running_store(tmp_path) as running:
        yield running


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status, and all that is said in the message and the details."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), f"{raised.value.details()} {from_call(raised.value).details()}"


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_files_are_refused_with_their_reason(store: Store, tmp_path: Path, name: str) -> None:
    (config_bytes, weights), reason = HOSTILE[name]
    before = contents(tmp_path)
    code, said = await refused(store.upload(config_bytes, weights))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(reason, said.replace("\n", " ")), said
    assert CONFIG_NAME in said or WEIGHTS_NAME in said
    assert contents(tmp_path) == before == set()
    assert await store.names() == []
    assert (await store.upload(*files())).rank == RANK


async def test_many_violations_arrive_at_once(store: Store) -> None:
    """As many as a status can carry, however long the names are."""
    made = {f"{number}{'x' * 500}": np.ones(1, np.float32) for number in range(60)}
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await store.upload(GOOD_CONFIG, save(made))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = from_call(raised.value).violations
    assert len(violations) > 5
    assert {violation.field for violation in violations} == {WEIGHTS_NAME}
    assert re.fullmatch(r"and \d+ more", violations[-1].description)
    assert f"{Q} is missing; it must be [4, 8]" in [violation.description for violation in violations]


async def test_layers_are_described_by_the_last_parts_of_their_names(store: Store) -> None:
    for number, targets in enumerate(
        ("all-linear", r".*\.(q|v|down)_proj", ["self_attn.q_proj", "v_proj", "down_proj"])
    ):
        adapter = await store.upload(*configured(target_modules=targets), name=f"a{number}")
        assert list(adapter.target_modules) == ["down_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((CONFIG_NAME, "../../adapter_model.safetensors"), "only adapter_config.json and adapter_model"),
        (("/etc/passwd", WEIGHTS_NAME), "only adapter_config.json and adapter_model"),
        ((CONFIG_NAME, "adapter_model.bin"), "safe_serialization=True"),
        ((CONFIG_NAME, CONFIG_NAME), "must be adapter_config.json and adapter_model.safetensors"),
        ((CONFIG_NAME, ""), "only adapter_config.json"),
    ],
)
async def test_other_files_are_refused(store: Store, tmp_path: Path, names: tuple[str, str], reason: str) -> None:
    code, said = await refused(store.upload(*files(), names=names))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in said
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "x" * 65, "a b", "ä", "a\0b", "a\n"])
async def test_names_that_could_mean_something_else_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    for call in (store.upload(*files(), name=name), store.resolve(name), store.remove(name)):
        code, said = await refused(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "name" in said
    assert contents(tmp_path) == set()


async def test_sizes_have_to_be_as_announced(store: Store, tmp_path: Path) -> None:
    config_bytes, weights = files()
    everything = config_bytes + weights
    for data, reason in ((everything + b"x", "more than"), (everything[:-1], "were announced"), (b"", "0 bytes came")):
        code, said = await refused(store.upload(config_bytes, weights, data=data))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert reason in said
    for sizes, reason in (((0, len(weights)), "is empty"), ((len(config_bytes), 1 << 40), "more than the limit")):
        code, said = await refused(store.upload(config_bytes, weights, sizes=sizes))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert reason in said
    assert contents(tmp_path) == set()


async def test_files_may_come_in_either_order(store: Store) -> None:
    config_bytes, weights = files()
    adapter = await store.upload(weights, config_bytes, names=(WEIGHTS_NAME, CONFIG_NAME))
    assert adapter.digest == (await store.upload(config_bytes, weights)).digest
    assert await store.fetch(adapter.digest) == (config_bytes, weights)


async def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter of 200 MB is received and checked without being held, in a process that is its client as well."""
    monkeypatch.setitem(MODULES, "model.layers.0.self_attn.q_proj", (1 << 21, 8))
    weights = save(tensors(targets=("q_proj",), rank=24))
    config_bytes = json.dumps(config(r=24, target_modules=["q_proj"])).encode()
    assert len(weights) > 200_000_000
    process = psutil.Process()
    seen: list[int] = []

    async def sent(_: bytes) -> AsyncIterator[bytes]:
        for part in (config_bytes, weights):
            for start in range(0, len(part), 1 << 20):
                seen.append(process.memory_info().rss)
                yield part[start : start + (1 << 20)]

    monkeypatch.setattr("support.adapters.pieces", sent)
    async with running_store(tmp_path) as store:
        adapter = await store.upload(config_bytes, weights, data=b"")
    seen.append(process.memory_info().rss)
    assert adapter.num_bytes > 200_000_000
    # About 40 MB: pieces between client and store, more of them where other processes hold the store up.
    assert max(seen) - seen[0] < adapter.num_bytes / 2
