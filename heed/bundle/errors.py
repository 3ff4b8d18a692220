class BundleError(ValueError):
    """A bundle that must not be used; the message says what is wrong with it."""
