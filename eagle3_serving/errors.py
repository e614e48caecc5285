"""The exceptions that reach a user; each is one line and carries the command's exit code."""


class Eagle3Error(Exception):
    """Root of every error raised on purpose. The message is one line: what, where, and the way out."""

    exit_code = 2


class InputError(Eagle3Error):
    """Wrong usage, or input that cannot be read (exit code 2)."""

    exit_code = 2


class CheckError(Eagle3Error):
    """Input that was read and is not right, or a run that failed (exit code 1)."""

    exit_code = 1


class NotJudged(CheckError):
    """Input that was read and may be right: what it means is not known here (exit code 1 where an answer is needed)."""
