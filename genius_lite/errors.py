"""The exceptions that rooms share."""


class UserError(Exception):
    """Something the user gave cannot be used; the message is one line that says what to do about it.

    The command line prints it and exits with code 2. Every other exception keeps its traceback.
    """


class NonFiniteError(RuntimeError):
    """Something computed is NaN or infinite. The message names the record that it belongs to, which is not kept."""
