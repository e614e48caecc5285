"""What a command's exit code means: the one table that help shows and commands return from."""

from typing import Final

DONE: Final = 0
NOT_RIGHT: Final = 1
USAGE: Final = 2
NOT_JUDGED: Final = 3
INTERRUPTED: Final = 130  # as a shell counts a death by SIGINT
UNREAD: Final = 141  # and by SIGPIPE

MEANINGS = {
    DONE: "done",
    NOT_RIGHT: "checked, and not right; or begun, and failed",
    USAGE: "wrong usage, or input that cannot be read",
    NOT_JUDGED: "not judged here (eagle3 check alone)",
    INTERRUPTED: "interrupted",
    UNREAD: "whoever read the output has gone",
}


def table() -> str:
    """As help shows them."""
    return "exit codes:\n" + "".join(f"  {code:<4} {meaning}\n" for code, meaning in MEANINGS.items())
