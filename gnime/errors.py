"""Errors that a user can mend. Their text is the whole message: it names the flag or file, the fault and the remedy."""


class GnimeError(Exception):
    """Something outside the program is wrong: a file, a folder, a device. Exit code 1."""

    exit_code = 1


class UsageError(GnimeError):
    """The command line asks for something that cannot be. Exit code 2."""

    exit_code = 2


class Unfinished(GnimeError):
    """An artifact is missing, or its training is not finished, and this command does not make it."""


class Stopped(GnimeError):
    """The user pressed Ctrl-C; what was done so far is saved. Exit code 130, as a shell expects."""

    exit_code = 130
