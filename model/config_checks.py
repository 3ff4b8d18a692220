"""What the fields of configs must be."""


def check_integers(config: object, *names: str, least: int = 1) -> None:
    """Raises ValueError, with its name, for a field that is not an integer of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise ValueError(f"{name} must be {kind}, got {value!r}")
