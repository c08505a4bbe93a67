"""The one error that users can mend."""


class UserError(ValueError):
    """What the user can mend: the message names the value, the setting and the mend (exit code 2)."""
