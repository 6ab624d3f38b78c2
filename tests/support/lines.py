"""What processes of a local system write."""

from services.local.launcher import Listener


class Lines(Listener):
    """Keeps all lines, each behind its process's name."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_line(self, name: str, line: str) -> None:
        self.lines.append(f"{name} {line}")
