"""The one error that users can mend."""


class UserError(ValueError):
    """What the user can mend: the message names the value, the setting and the mend (exit code 2).

    Ray Data adds advice of its own to `args`; `message` stays as it was given.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message
