"""Region proposals: their algebra (`regions`), and where they come from (`generate`, `mcg`, `masks`)."""

MAX_PIXELS = 100_000_000  # of a photo in a proposal file; more is a broken or hostile file


class ProposalFileError(ValueError):
    """A proposal file that cannot be used. The message says what is wrong with it and, where known, the way out."""
