"""Errors that a user can fix. The text is the whole message: it names the flag or file, the fault and the remedy."""


def printable(text: object, most: int = 200) -> str:
    """Text from a file or a name, fit to be printed: on one line, without control characters, at most `most` characters."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
    return escaped if len(escaped) <= most else f"{escaped[: most - 3]}..."


class GnimeError(Exception):
    """A file, a folder or the device is not as the run needs it. Exit code 1."""

    exit_code = 1


class UsageError(GnimeError):
    """The command line is wrong. Exit code 2."""

    exit_code = 2


class Unfinished(GnimeError):
    """An artifact is missing, or its training is not finished, and this command does not make it."""


class Stopped(GnimeError):
    """Ctrl-C, SIGTERM or a time limit ended a training, and its finished epochs are saved. Exit code 130."""

    exit_code = 130


USER_MODULE = "gnime user file "  # the names of modules made of the user's own files start so; see `ownfiles`


def place(error: BaseException) -> str:
    """The file and line of the user's own code in which an error was raised, as "serve.py:12"; empty where it was elsewhere."""
    found, step = "", error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals.get("__name__", "").startswith(USER_MODULE):
            found = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return found


def brief(error: BaseException) -> str:
    """Type and first line of an error, cut."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__


def fixable(error: Exception) -> str | None:
    """The line for an error of Python or PyTorch that the user can fix; None for any other error."""
    if isinstance(error, MemoryError):
        return "out of memory; give a smaller --batch-size or --width"
    if where := place(error):
        return f"{where}: raises {brief(error)}"
    if isinstance(error, OSError):
        return f"{error.filename or 'file system'}: {error.strerror or error}"
    if not isinstance(error, RuntimeError):
        return None
    if "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "the device is out of memory; give a smaller --batch-size or --width, or --precision bf16"
    if "Connection closed by peer" in str(error):  # of several processes: the one that failed prints the reason
        return "another process of this run stopped"
    return None
