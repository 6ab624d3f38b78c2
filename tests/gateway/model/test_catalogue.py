"""Models by name, and settings that describe them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.model.catalogue import Catalogue
from gateway.model.served_model import ServedModel
from gateway.settings import GatewaySettings, ModelSettings
from paceline.errors import InvalidArgumentError, NotFoundError


async def catalogue(tokenizer: Path, *ids: str) -> Catalogue:
    return Catalogue([await ServedModel.load(ModelSettings(id=name, tokenizer=str(tokenizer))) for name in ids])


async def test_a_model_is_found_by_its_name(tokenizer_folder: Path) -> None:
    models = await catalogue(tokenizer_folder, "b", "a")
    assert [model.id for model in models] == ["a", "b"]
    assert models.get("b").id == "b"
    await models.close()


async def test_no_name_is_a_name_where_there_is_one_model(tokenizer_folder: Path) -> None:
    models = await catalogue(tokenizer_folder, "a")
    assert models.get("").id == "a"
    await models.close()


async def test_what_is_not_there_is_answered_with_what_is(tokenizer_folder: Path) -> None:
    models = await catalogue(tokenizer_folder, "b", "a")
    with pytest.raises(NotFoundError, match="serves 'a', 'b'"):
        models.get("c")
    with pytest.raises(InvalidArgumentError, match="model: must be one of 'a', 'b'"):
        models.get("")
    await models.close()


async def test_a_public_prefix_is_shared_as_far_as_a_prompt_follows_it(tokenizer_folder: Path) -> None:
    settings = ModelSettings(id="a", tokenizer=str(tokenizer_folder), public_prefixes=("abc",))
    model = await ServedModel.load(settings)
    prompts = [await model.tokenizer.encode(text) for text in ("abcd", "abx", "x", "ab")]
    assert [model.num_public_tokens(prompt) for prompt in prompts] == [3, 2, 0, 2]
    await model.close()


def test_models_are_settings_of_the_command_line() -> None:
    one, two = '{"id": "a", "tokenizer": "t"}', '{"id": "b", "tokenizer": "t", "drafts": ["x:1"], "draft_tokens": 3}'
    settings = GatewaySettings.load([f"--models=[{one}, {two}]", '--adapter-stores=["x:2", "x:3"]'])
    assert [model.id for model in settings.models] == ["a", "b"]
    assert settings.models[1].drafts == ("x:1",)
    assert settings.adapter_stores == ("x:2", "x:3")


@pytest.mark.parametrize(
    "models", [[], [{"id": "a", "tokenizer": "t"}, {"id": "a", "tokenizer": "u"}], [{"id": "", "tokenizer": "t"}]]
)
def test_models_without_a_name_of_their_own_are_refused(models: list[dict[str, str]]) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings(models=models)  # type: ignore[arg-type]
