"""The commands as they are typed: each a process of its own, in front of a scripted gateway."""

import asyncio
import json
import os
import pty
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.gateway import FakeGateway, serve_gateway
from support.typed import COMMAND, typed

INTERRUPT, END = b"\x03", b"\x04"


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
async def address(gateway: FakeGateway) -> AsyncIterator[str]:
    async with serve_gateway(gateway) as served:
        yield served


async def test_a_prompt_is_continued_for_256_tokens_unless_it_is_said_otherwise(
    address: str, gateway: FakeGateway
) -> None:
    done = await typed("generate", "def f(", "--address", f"http://{address}/")
    assert done.code == 0, done.err
    assert done.out.startswith("0 1 2 ")
    assert [request.sampling.max_tokens for request in gateway.requests] == [256]


@pytest.mark.parametrize("said", [(), ("-",)])
async def test_what_standard_input_holds_is_continued(
    address: str, gateway: FakeGateway, said: tuple[str, ...]
) -> None:
    done = await typed("generate", *said, "--max-tokens=3", "--json", f"--address={address}", standard_input=b"def g(")
    assert [json.loads(line)["delta"]["text"] for line in done.out.splitlines()] == ["0 ", "1 ", "2 "]
    assert [request.prompt for request in gateway.requests] == ["def g("]


@pytest.mark.parametrize("wrong", ["https://somewhere", "somewhere", "somewhere:7100/path"])
async def test_an_address_that_cannot_be_one_is_refused_in_words(wrong: str) -> None:
    done = await typed("models", "--address", wrong)
    assert done.code == 2
    assert wrong in done.err
    assert "host:port" in done.err
    assert "Traceback" not in done.err


async def test_where_nobody_answers_the_way_to_start_somebody_is_told() -> None:
    done = await typed("models", "--address=127.0.0.1:1")
    assert done.code == 1
    assert "paceline up" in done.err
    assert done.err.count("\n") == 1


async def test_commands_are_completed() -> None:
    done = await typed(_PACELINE_COMPLETE="complete_bash", COMP_WORDS="paceline gen", COMP_CWORD="1")
    assert done.out.split() == ["generate"]


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self) -> None:
        self._shown = b""
        self._changed = asyncio.Event()
        self._ours = -1

    async def open(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        """Types the command."""
        self._ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=_take_terminal, env={**os.environ, "TERM": "dumb", **environment},
        )  # fmt: skip
        os.close(theirs)
        asyncio.get_running_loop().add_reader(self._ours, self._read)
        return process

    def type(self, what: bytes) -> None:
        """Presses keys."""
        os.write(self._ours, what)

    async def shows(self, text: str) -> str:
        """All that is shown up to this text, as soon as it is; what follows is kept."""
        async with asyncio.timeout(30):
            while text.encode() not in self._shown:
                self._changed.clear()
                await self._changed.wait()
        before, self._shown = self._shown.split(text.encode(), 1)
        return before.decode()

    async def press(self, keys: bytes, until: str) -> None:
        """Presses keys until they are seen to have been heard.

        Python's readline hears of a signal only while it waits for a key: what comes amid one it hears with the next.
        """
        async with asyncio.timeout(30):
            while True:
                self.type(keys)
                with suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await self.shows(until)
                        return

    def close(self) -> None:
        """Is taken away."""
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)

    def _read(self) -> None:
        try:
            self._shown += os.read(self._ours, 1 << 16)
        except OSError:  # Whoever was there has ended.
            asyncio.get_running_loop().remove_reader(self._ours)
        self._changed.set()


def _take_terminal() -> None:
    """Makes standard input the terminal that sends signals to this process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Whoever runs tests in the background has it ignored.


async def test_a_conversation_outlives_errors_and_what_was_stopped(
    address: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    terminal = Terminal()
    process = await terminal.open("chat", f"--address={address}", XDG_DATA_HOME=str(tmp_path))
    try:
        await terminal.shows("> ")
        terminal.type(b"/help\n")
        assert "/reset" in await terminal.shows("\r\n> ")
        terminal.type(b"hello\n")
        await terminal.shows("[hello]")
        await terminal.shows("> ")
        terminal.type(b"refuse\n")
        await terminal.shows("not that one")
        await terminal.shows("> ")
        terminal.type(b"endless\n")
        await terminal.shows(" 50 ")
        terminal.type(INTERRUPT)
        await terminal.shows("> ")
        await gateway.idle.wait()
        terminal.type(b"half")
        await terminal.shows("half")  # From here on it is the line's editor that is interrupted.
        await terminal.press(INTERRUPT, "/exit ends")
        terminal.type(b"again\n")
        await terminal.shows("[again]")
        await terminal.shows("> ")
        terminal.type(END)
        assert await process.wait() == 0
    finally:
        terminal.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = [message.content for message in gateway.requests[-1].messages]
    assert said[:3] == ["hello", "[hello]", "endless"]
    assert said[3].startswith("[hello][[hello]][endless] 0 1 2 ")
    assert said[4:] == ["again"]
    lines = (tmp_path / "paceline" / "chat_history").read_text().splitlines()
    assert lines == ["/help", "hello", "refuse", "endless", "again"]


@pytest.mark.parametrize(("said", "name"), [(("pirate",), "pirate"), (("json", "--name=mine"), "mine")])
async def test_an_adapter_that_ships_is_uploaded_by_its_name(
    address: str, gateway: FakeGateway, said: tuple[str, ...], name: str
) -> None:
    done = await typed("adapters", "upload", *said, f"--address={address}")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{name}: rank 4")
    (announced,) = gateway.requests
    assert announced.upload.name == name
    assert sum(file.num_bytes for file in announced.upload.files) > 1_000_000


async def test_a_folder_is_meant_before_what_ships(address: str, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "pirate").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "pirate" / file).write_bytes(b"{}")
    done = await typed("adapters", "upload", str(tmp_path / "pirate"), f"--address={address}")
    assert done.code == 0, done.err
    (announced,) = gateway.requests
    assert announced.upload.name == "pirate"
    assert sum(file.num_bytes for file in announced.upload.files) == 4


async def test_a_folder_that_is_not_there_and_ships_not_is_named(address: str) -> None:
    done = await typed("adapters", "upload", "captain", f"--address={address}")
    assert done.code == 1
    assert "captain is not a folder" in done.err
