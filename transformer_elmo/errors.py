"""The exception for input that is not as it must be."""

try:
    # Where AllenNLP is, its own: its commands and its users' code expect that one.
    from allennlp.common.checks import ConfigurationError
except Exception:  # A broken installation fails in its own ways.

    class ConfigurationError(Exception):  # type: ignore[no-redef]
        """
        Bad input. The message says what was expected, what came, and what to do.

        # Parameters

        message : `str`
        """

        def __init__(self, message: str) -> None:
            super().__init__(message)
            self.message = message


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


__all__ = ["ConfigurationError", "first_line"]
