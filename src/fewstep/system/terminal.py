"""What is printed on a terminal."""


def printable(words: object) -> str:
    """The words with what no terminal can show, or should obey, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(words))
