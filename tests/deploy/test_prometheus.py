"""What `deploy/prometheus` holds, as Prometheus' own tool judges it: form, and when each alert fires."""

import re
import subprocess
from pathlib import Path

import yaml

from support.prometheus_server import binary

_HERE = Path(__file__).parent


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([binary("promtool"), *arguments], capture_output=True, text=True, check=False)


def test_rules_and_configuration_are_well_formed(repository: Path) -> None:
    folder = repository / "deploy" / "prometheus"
    for done in (
        promtool("check", "config", "--lint=all", "--lint-fatal", str(folder / "prometheus.yml")),
        promtool("check", "rules", "--lint=all", "--lint-fatal", str(folder / "paceline.rules.yml")),
    ):
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_for_what_it_is_about_and_not_before(repository: Path, tmp_path: Path) -> None:
    rules = repository / "deploy" / "prometheus" / "paceline.rules.yml"
    written = (_HERE / "alerts_test.yml").read_text()
    (tmp_path / "test.yml").write_text(written.replace("RULES", str(rules)))
    done = promtool("test", "rules", str(tmp_path / "test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = {
        rule["alert"]
        for group in yaml.safe_load(rules.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    fired = {
        test["alertname"]
        for case in yaml.safe_load(written)["tests"]
        for test in case["alert_rule_test"]
        if test.get("exp_alerts")
    }
    assert fired == alerts


def test_the_dashboard_has_no_panel_twice_and_asks_one_data_source(repository: Path) -> None:
    dashboard = yaml.safe_load((repository / "deploy" / "grafana" / "paceline.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels:
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval", "__range"}
            assert used <= variables
