"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user gave cannot be used; the message is one line that says what to do about it.

    The command line prints it and exits with code 2. Every other exception keeps its traceback.
    """
