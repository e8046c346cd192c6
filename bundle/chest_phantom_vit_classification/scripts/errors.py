"""The one family of errors that users are meant to read."""


class VividError(ValueError):
    """A mistake in an input, a file or a setting, told so that it can be mended.

    The message names the file, row or key and says the way out. Commands print it as one line without a traceback.
    """
