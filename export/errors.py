class ExportError(ValueError):
    """Why no bundle was written."""
