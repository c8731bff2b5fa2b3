"""Errors that a user can fix. The text is the whole message: it names the flag or file, the fault and the remedy."""


class GnimeError(Exception):
    """A file, a folder or the device is not as the run needs it. Exit code 1."""

    exit_code = 1


class UsageError(GnimeError):
    """The command line is wrong. Exit code 2."""

    exit_code = 2


class Unfinished(GnimeError):
    """An artifact is missing, or its training is not finished, and this command does not make it."""


class Stopped(GnimeError):
    """The user pressed Ctrl-C, and the finished epochs are saved. Exit code 130, as a shell expects."""

    exit_code = 130
