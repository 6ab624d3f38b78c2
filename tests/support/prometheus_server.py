"""A real Prometheus on loopback that reads real processes, and what its queries are made of."""

import asyncio
import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import promql_parser

from support.redis_server import free_ports

_ROOT = Path(__file__).resolve().parents[2]
_SCRAPE_SECONDS = 0.5
_COMPARISONS = (">", "<", ">=", "<=", "==", "!=")


def binary(name: str) -> str:
    """Path of `prometheus` or `promtool`."""
    path = shutil.which(name) or shutil.which(name, path=str(_ROOT / "build" / "prometheus" / "usr" / "bin"))
    assert path is not None, f"no {name}: make setup-dev puts one into build/"
    return path


class NotReadyError(Exception):
    """It listens, and has not read its own files yet."""


class PrometheusServer:
    """Answers queries."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query: `metric` has the labels of each, `value` its time and value."""
        answer = await self._get("query", query=expression)
        assert answer["data"]["resultType"] == "vector", expression
        return list(answer["data"]["result"])

    async def targets_up(self) -> int:
        """How many processes answered when they were read last."""
        try:
            return len(await self.query("up == 1"))
        except (OSError, NotReadyError):
            return 0

    async def _get(self, path: str, **fields: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        try:
            return json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read()))
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
                raise NotReadyError from error
            raise AssertionError(f"{fields}: {error.read().decode()}") from error


@asynccontextmanager
async def reading(targets: Mapping[str, int], rules: Path, folder: Path) -> AsyncIterator[PrometheusServer]:
    """A Prometheus that reads these ports by the name of their jobs, and follows the rules of a file."""
    interval = f"{int(1000 * _SCRAPE_SECONDS)}ms"
    jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()]
    config = {"global": {"scrape_interval": interval, "evaluation_interval": interval}, "rule_files": [str(rules)]}
    file = folder / "prometheus.json"  # JSON is YAML too.
    file.write_text(json.dumps({**config, "scrape_configs": jobs}))
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        binary("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    )  # fmt: skip
    try:
        server = PrometheusServer(port)
        async with asyncio.timeout(60):
            while await server.targets_up() < len(targets):
                assert process.returncode is None, "Prometheus has ended"
                await asyncio.sleep(_SCRAPE_SECONDS)
        yield server
    finally:
        process.terminate()
        await process.wait()


def selectors(expression: str) -> Iterator[str]:
    """What a query reads: each selector of series, without its range."""
    yield from _selectors(promql_parser.parse(expression))


def compared(expression: str) -> str:
    """What an alert compares with its bound; the whole of what compares nothing."""
    parsed = promql_parser.parse(expression)
    if isinstance(parsed, promql_parser.BinaryExpr) and str(parsed.op) in _COMPARISONS:
        return str(parsed.lhs)
    return expression


def _selectors(part: Any) -> Iterator[str]:
    match part:
        case promql_parser.VectorSelector():
            yield str(part)
        case promql_parser.MatrixSelector():
            yield str(part.vector_selector)
        case promql_parser.BinaryExpr():
            yield from _selectors(part.lhs)
            yield from _selectors(part.rhs)
        case promql_parser.Call():
            for argument in part.args:
                yield from _selectors(argument)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.SubqueryExpr():
            yield from _selectors(part.expr)
        case promql_parser.UnaryExpr():
            yield from _selectors(part.expr)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return
        case _:
            raise AssertionError(f"{part} is of an unknown kind")
