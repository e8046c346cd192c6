"""The one family of errors that users are meant to read."""


class VividError(ValueError):
    """A mistake in an input, a file or a setting, told so that it can be mended.

    The message names the file, row or key and says the way out. Commands print it as one line without a traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
