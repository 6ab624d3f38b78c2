"""Files of models are read strictly; what is wrong is said with its line or key."""

from pathlib import Path

import pytest

from services.common.graft import check_graft
from services.local import pair
from services.local.errors import LaunchError
from services.local.model_files import shipped_draft
from services.local.pair import read_models, shipped_model

TWO = """
[[models]]
id = "large"
model = "org/large"
draft = "org/small"
dtype = "bfloat16"
threads = 3
adapters = 2

[[models]]
model = "near"
"""


def written(folder: Path, text: str) -> Path:
    (folder / "near").mkdir(exist_ok=True)
    path = folder / "models.toml"
    path.write_text(text)
    return path


def test_a_table_is_a_model(tmp_path: Path) -> None:
    large, near = read_models(written(tmp_path, TWO), dtype="float32")
    assert (large.public_id, large.draft, large.threads, large.dtype) == ("large", "org/small", 3, "bfloat16")
    assert large.engine(large.model, 3)["max_adapters"] == 2
    assert (near.public_id, near.model, near.dtype) == ("near", str(tmp_path / "near"), "float32")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[models]]\nmodel = "a\nb"', r"is no TOML: .*line 2"),
        ("", "lists no models"),
        ("models = 3", "lists no models"),
        ('[[model]]\nmodel = "a"', r"no key 'model'; each model is a table \[\[models\]\]"),
        ('[[models]]\nmodel = "a"\n[[models]]\nid = "b"', "model 2: the key 'model' is missing"),
        ('[[models]]\nmodel = "a"\nthread = 2', "model 1: there is no key 'thread'; did you mean 'threads'"),
        ('[[models]]\nmodel = "a"\nthreads = 0', "model 1: threads: input should be greater than or equal to 1"),
        ('[[models]]\nmodel = "a"\ndtype = "int3"', "model 1: dtype: input should be 'auto', 'float32'"),
        ('[[models]]\nmodel = "a"\n[[models]]\nmodel = "a"', "two models are called 'a'"),
    ],
)
def test_what_is_wrong_is_said_in_words(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(LaunchError, match=said) as caught:
        read_models(written(tmp_path, text))
    assert "models.toml" in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be read: No such file"):
        read_models(tmp_path / "nope.toml")


def test_where_nothing_is_named_the_assistant_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "assistant.gguf"
    file.touch()
    monkeypatch.setattr(pair, "installed", lambda _: file)
    assert pair.named(None) == pair.named(pair.ASSISTANT) == (pair.ASSISTANT, shipped_draft(pair.ASSISTANT))
    assert pair.named(pair.PYTHON_PAIR) == (shipped_model("target"), shipped_model("draft"))
    assert pair.named("org/model") == ("org/model", None)


def test_where_it_is_not_installed_the_small_pair_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "installed", lambda _: None)
    assert pair.named(None) == (shipped_model("target"), shipped_model("draft"))


def test_the_assistants_draft_ships() -> None:
    draft = shipped_draft(pair.ASSISTANT)
    assert draft is not None
    assert check_graft(Path(draft))["hidden_size"] == 576
