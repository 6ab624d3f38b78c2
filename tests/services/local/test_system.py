"""What a user says becomes processes with typed settings; they know each other, and no secret is on a command line."""

import json
import os
from pathlib import Path

import pytest

from services.common.tokens import public_key
from services.draft.settings import DraftSettings
from services.local.errors import LaunchError
from services.local.pair import Pair
from services.local.system import System, SystemSettings, make_system, named_ports
from services.verifier.settings import VerifierSettings

CODE = Pair(id="code", model="org/code", draft="org/small", threads=2, draft_threads=1)
CHAT = Pair(model="org/chat", adapters=3)


def made(tmp_path: Path, *models: Pair, **more: object) -> System:
    return make_system(SystemSettings(models, **more), tmp_path)  # type: ignore[arg-type]


def test_one_model_is_a_verifier_a_draft_and_a_gateway(tmp_path: Path) -> None:
    system = made(tmp_path, CODE)
    assert [process.name for process in system.processes] == ["verifier", "draft", "gateway"]
    verifier, draft, _ = (process.settings for process in system.processes)
    assert isinstance(verifier, VerifierSettings)
    assert isinstance(draft, DraftSettings)
    assert (verifier.model_id, verifier.engine.model, verifier.engine.num_threads) == ("code", "org/code", 2)
    assert (draft.engine.model, draft.engine.num_threads) == ("org/small", 1)
    assert verifier.token_keys == draft.token_keys == (public_key(system.signing_key),)
    assert len({process.port for process in system.processes}) == 3


def test_a_draft_may_run_in_its_targets_process_on_all_of_its_cores(tmp_path: Path) -> None:
    pair = Pair(id="code", model="org/code", draft="org/small", draft_process=False, weights="int8", adapters=3)
    system = made(tmp_path, pair)
    assert [process.name for process in system.processes] == ["verifier", "gateway"]
    verifier, gateway = (process.settings for process in system.processes)
    assert isinstance(verifier, VerifierSettings)
    assert verifier.draft is not None
    assert (verifier.draft.model, verifier.draft.weights, verifier.engine.weights) == ("org/small", "auto", "int8")
    assert verifier.engine.num_threads == verifier.draft.num_threads == os.cpu_count()
    assert json.loads(gateway.to_json())["models"][0]["drafts"] == []
    with pytest.raises(LaunchError, match="'code': without a process of its own its draft has the target's threads"):
        made(tmp_path, pair.model_copy(update={"draft_threads": 2}))


def test_two_models_share_a_gateway_a_cache_and_a_store(tmp_path: Path) -> None:
    system = made(tmp_path, CODE, CHAT, prefix_cache=True, adapter_store=True)
    by_name = {process.name: process for process in system.processes}
    assert list(by_name) == [
        "prefix-cache", "adapter-store", "verifier code", "draft code", "verifier org/chat", "gateway",
    ]  # fmt: skip
    gateway = json.loads(by_name["gateway"].settings.to_json())
    assert [(model["id"], model["verifiers"], model["drafts"]) for model in gateway["models"]] == [
        ("code", [by_name["verifier code"].address], [by_name["draft code"].address]),
        ("org/chat", [by_name["verifier org/chat"].address], []),
    ]
    chat = by_name["verifier org/chat"].settings
    assert isinstance(chat, VerifierSettings)
    assert chat.num_adapter_slots == 3
    assert chat.prefix_cache == by_name["prefix-cache"].address
    assert str(tmp_path) in by_name["adapter-store"].settings.to_json()


def test_a_draft_drafts_ahead_where_its_models_share_of_the_cores_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    pairs = [Pair(id=name, model=f"org/{name}", draft="org/small") for name in ("one", "two")]

    def ahead(*models: Pair) -> list[bool]:
        settings = [process.settings for process in made(tmp_path, *models).processes]
        return [each.ahead for each in settings if isinstance(each, DraftSettings)]

    assert ahead(pairs[0]) == [True]
    assert ahead(*pairs) == [False, False]


def test_ports_are_named_and_further_models_take_ten_more(tmp_path: Path) -> None:
    ports = {"gateway": 1, **named_ports((CODE, CHAT), 7102, 7101)}
    system = made(tmp_path, CODE, CHAT, ports=ports)
    assert [process.port for process in system.processes] == [7102, 7101, 7112, 1]


def test_overrides_reach_the_part_that_they_name(tmp_path: Path) -> None:
    overrides = {"verifier": {"suffix_drafting": False, "engine": {"block_size": 32}}}
    settings = made(tmp_path, CODE, overrides=overrides).processes[0].settings
    assert isinstance(settings, VerifierSettings)
    assert (settings.suffix_drafting, settings.engine.block_size, settings.engine.model) == (False, 32, "org/code")


def test_the_environment_fills_in_what_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_VERIFIER_ENGINE__KV_BYTES", str(1 << 20))
    monkeypatch.setenv("PACELINE_VERIFIER_SERVER__GRACE_SECONDS", "3")
    settings = made(tmp_path, CODE).processes[0].settings
    assert isinstance(settings, VerifierSettings)
    assert (settings.engine.kv_bytes, settings.engine.model, settings.server.grace_seconds) == (1 << 20, "org/code", 3)


def test_each_process_has_a_port_of_its_own_for_metrics(tmp_path: Path) -> None:
    quiet = made(tmp_path, CODE)
    assert not any(process.metrics_address for process in quiet.processes)
    addresses = [process.metrics_address for process in made(tmp_path, CODE, CHAT, metrics=True).processes]
    assert len(set(addresses)) == len(addresses) == 4
    assert addresses[0] == "127.0.0.1:9464"


def test_a_setting_that_cannot_be_is_named_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match=r"^settings of the gateway: server\.port: Input should be less than [^\n]*$"):
        made(tmp_path, CODE, ports={"gateway": 99_999})
    monkeypatch.setenv("PACELINE_DRAFT_MODLE", "x")
    with pytest.raises(
        LaunchError, match=r"^settings of the draft: environment variable PACELINE_DRAFT_MODLE names no"
    ):
        made(tmp_path, CODE)
