"""Real Redis servers on loopback, one or a cluster of three, that can be killed, held and started again."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from services.local.ports import free_port

_START_SECONDS = 30.0


class RedisServer:
    """A server that keeps nothing on disk but what its cluster is."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client: Any = redis.Redis(port=self.port)
        """Reads and changes what is there, past the code that is tested."""
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, or starts it again; returns once it answers."""
        binary = shutil.which("redis-server")
        assert binary is not None, "no redis-server: make setup-dev installs one"
        self._process = process = subprocess.Popen(
            [
                binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder),
                "--save", "", "--appendonly", "no", "--logfile", "log", *self._options,
            ]
        )  # fmt: skip

        def answers() -> bool:
            assert process.poll() is None, (self._folder / "log").read_text()
            try:
                return bool(self.client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers)

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    def kill(self) -> None:
        """Ends it at once: what it held is gone. Does nothing when it has ended."""
        if self._process is not None:
            self.client.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Takes connections and answers nothing meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


class RedisCluster:
    """Three servers, each with a third of the slots and no replica."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes
        self.url = nodes[0].url

    def wait(self) -> None:
        """Returns once every node takes the cluster to be whole."""
        wait_until(lambda: all(self._is_whole(node) for node in self.nodes))

    def _is_whole(self, node: RedisServer) -> bool:
        return bool(node.client.cluster("info")["cluster_state"] == "ok")


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server that has just started."""
    server = RedisServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def running_cluster(folder: Path) -> Iterator[RedisCluster]:
    """A cluster that has just been made."""
    ports = free_ports(6)
    with ExitStack() as stack:
        nodes = []
        for port, bus in zip(ports[:3], ports[3:], strict=True):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000")
            nodes.append(RedisServer(folder / str(port), *options, port=port))
            stack.callback(nodes[-1].kill)
            nodes[-1].start()
        cli = shutil.which("redis-cli")
        assert cli is not None
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run([cli, "--cluster", "create", *addresses, "--cluster-yes"], check=True, stdout=subprocess.DEVNULL)
        cluster = RedisCluster(nodes)
        cluster.wait()
        yield cluster


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that nobody listens on, all different."""
    return [free_port() for _ in range(count)]


def wait_until(holds: Callable[[], bool]) -> None:
    """Returns once it holds."""
    deadline = time.monotonic() + _START_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(0.01)
