"""Text from elsewhere, made fit to print."""

DAY_S = 86400.0


def printable(text: str) -> str:
    """Make a board's words fit for one line of a terminal: no escapes, 300 characters at most."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))[-300:]


def age(seconds: float) -> str:
    """Say how long that is, in the largest unit of which it has two."""
    for unit, length in (("days", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
