"""Text for one line of a terminal."""

DAY_S = 86400.0


def printable(text: str) -> str:
    """Make untrusted text safe for one line of a terminal: no escapes, the last 300 characters."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))[-300:]


def age(seconds: float) -> str:
    """Format a duration in the largest unit of which it has at least two."""
    for unit, length in (("days", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
