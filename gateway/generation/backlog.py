"""What a draft has not been told yet."""

import asyncio

from paceline.internal.v1 import speculation_pb2


class Backlog:
    """Commits that the draft has not been told of, as one. It is due once the verifier wants proposals."""

    def __init__(self) -> None:
        self._commit: speculation_pb2.Commit | None = None
        self._due = asyncio.Event()
        self.num_due = 0
        """Commits since it became due."""
        self.num_held = 0
        """Commits since something was wanted."""

    def add(self, commit: speculation_pb2.Commit) -> None:
        """Takes the commit that follows those added before."""
        if self._commit is None:
            self._commit = speculation_pb2.Commit(anchor=commit.anchor)
        self._commit.token_ids.extend(commit.token_ids)
        self._commit.num_wanted = commit.num_wanted
        self.num_held = 0 if commit.num_wanted else self.num_held + 1
        if commit.num_wanted:
            self._due.set()
        if self._due.is_set():
            self.num_due += 1

    async def take(self) -> speculation_pb2.Commit:
        """Everything so far, once it is due."""
        await self._due.wait()
        self._due.clear()
        commit, self._commit, self.num_due = self._commit, None, 0
        if commit is None:
            raise RuntimeError("a backlog is due only with a commit in it")
        return commit
