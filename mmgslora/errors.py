class ForgettingError(ValueError):
    """A request, its data or its model cannot be served as asked.

    The message is one sentence for the person who asked: it names the value at
    fault and what is allowed. ``tools/train.py`` prints it alone, without a
    traceback, and exits with 1.
    """
