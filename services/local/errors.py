"""What keeps a system from running."""


class LaunchError(RuntimeError):
    """A system cannot be started, or has ended. The message is one sentence for the user."""
