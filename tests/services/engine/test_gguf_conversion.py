"""A GGUF file serves as transformers reads it, or is refused in a sentence; it is converted once, whole or not."""

import asyncio
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from services.common.checkpoint import CheckpointError
from services.common.gguf import check_gguf, conversion_of, find_gguf
from services.engine.gguf_conversion import convert
from support.driver import generate, make_engine
from support.gguf_files import TEMPLATE, write_gguf

TEXTS = ("def f(x):\n    return x", "Grüße, 世界 🙂", "")
PROMPTS = [list(range(3, 20)), [7, 8, 9], list(range(100, 140))]
COMMAND = (sys.executable, "-m", "services.engine.gguf_conversion")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16])
def test_it_serves_the_tokens_that_transformers_gets_from_the_file(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", kind)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    engine = make_engine(str(convert(file)))
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)[0, len(prompt) :]
        for prompt in PROMPTS
    ]
    assert generate(engine, PROMPTS, 24) == [tokens.tolist() for tokens in expected]


def test_its_tokenizer_gives_what_transformers_reads_from_the_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    kept = AutoTokenizer.from_pretrained(convert(file))
    assert [kept(text)["input_ids"] for text in TEXTS] == [read(text)["input_ids"] for text in TEXTS]
    assert kept.chat_template == read.chat_template == TEMPLATE
    assert (kept.bos_token_id, kept.eos_token_id) == (read.bos_token_id, read.eos_token_id) == (1, 2)


def test_it_is_converted_once_by_what_it_holds(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = convert(file)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    copy = tmp_path / "elsewhere" / "tiny.gguf"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    assert convert(copy) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert convert(write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)) != folder


async def test_several_processes_that_want_it_get_the_same(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    both = [await asyncio.create_subprocess_exec(*COMMAND, file, stdout=asyncio.subprocess.PIPE) for _ in range(2)]
    told = {(await process.communicate())[0].decode().strip() for process in both}
    assert told == {str(conversion_of(file))}
    assert [path.name for path in (cache / "paceline" / "gguf").iterdir() if path.name[0] != "."] == [
        conversion_of(file).name
    ]


def test_a_file_without_its_end_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    for length in (4, 40, len(whole) // 2, len(whole) - 64):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is not a whole GGUF file: download it again"):
            check_gguf(file)


@pytest.mark.parametrize("alignment", [float("inf"), 0.5])
def test_a_file_of_odd_numbers_is_refused(tmp_path: Path, alignment: float) -> None:
    file = tmp_path / "tiny.gguf"
    name = b"general.alignment"
    value = struct.pack("<Q", len(name)) + name + struct.pack("<If", 6, alignment)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + value)
    with pytest.raises(CheckpointError, match="is not a whole GGUF file"):
        check_gguf(file)


def test_what_is_newer_than_what_is_known_is_said(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    content = bytearray(file.read_bytes())
    content[4:8] = (9).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="has version 9 of the format, which the installed gguf package"):
        check_gguf(file)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F32, "float32"),
        (GGMLQuantizationType.F16, "float16"),
        (GGMLQuantizationType.BF16, "bfloat16"),
        (GGMLQuantizationType.Q8_0, "bfloat16"),
    ],
)
def test_it_serves_in_the_type_of_the_file_where_nothing_is_said(
    tmp_path: Path, kind: GGMLQuantizationType, dtype: str
) -> None:
    folder = convert(write_gguf(tmp_path / "tiny.gguf", kind))
    assert AutoConfig.from_pretrained(folder).dtype == getattr(torch, dtype)


def test_what_only_has_the_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    for content in (b"", b"something else"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="is called a GGUF file and is none"):
            check_gguf(file)


def test_an_architecture_that_transformers_does_not_read_is_refused_in_moments(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="holds a model of type rwkv9, which the installed transformers does not read"
    ):
        check_gguf(write_gguf(tmp_path / "tiny.gguf", architecture="rwkv9"))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 64}, "rope.scaling.type = yarn"),
        ({"attention.sliding_window": 16}, "attention.sliding_window = 16"),
        ({"attention.key_length": 32}, "attention.key_length = 32"),
    ],
)
def test_what_transformers_would_not_read_is_refused(tmp_path: Path, more: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"says llama.{problem}, which the installed transformers does not read"):
        convert(write_gguf(tmp_path / "tiny.gguf", more=more))


def test_what_repeats_the_usual_is_read(tmp_path: Path) -> None:
    more = {"attention.key_length": 16, "attention.value_length": 16, "rope.scaling.type": "none", "expert_count": 0}
    assert convert(write_gguf(tmp_path / "tiny.gguf", more=more)).is_dir()


def test_weights_that_transformers_would_leave_out_are_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(CheckpointError, match=r"has [\d,]+ weights, of which the installed transformers reads [\d,]+"):
        convert(file)


def test_where_there_is_no_room_it_is_said_before_anything_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(CheckpointError, match=r"takes 0.1 GB, and 0.0 GB are free: make room, or set XDG_CACHE_HOME"):
        convert(file)
    assert not conversion_of(file).exists()


def test_a_cache_that_cannot_be_is_said(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    cache.touch()
    with pytest.raises(CheckpointError, match=r"tiny.gguf cannot be converted: .*Not a directory"):
        convert(file)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = conversion_of(file)
    left = folder.with_name(f".{folder.name}-abc") / "model"
    left.mkdir(parents=True)
    convert(file)
    assert not left.parent.exists()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    ended = subprocess.run((*COMMAND, file), check=False, preexec_fn=limit, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "tiny.gguf cannot be converted" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert not [path for path in (cache / "paceline" / "gguf").iterdir() if path.is_dir()]
    assert convert(file).is_dir()


def test_a_folder_means_its_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert find_gguf(str(folder)) is None
    first = write_gguf(folder / "a.gguf")
    assert find_gguf(str(folder)) == find_gguf(str(first)) == first
    shutil.copy(first, folder / "b.gguf")
    with pytest.raises(CheckpointError, match=r"holds several GGUF files: name one of them \(a.gguf, b.gguf\)"):
        find_gguf(str(folder))
    (folder / "config.json").touch()
    assert find_gguf(str(folder)) is None
    assert find_gguf("org/model") is None
