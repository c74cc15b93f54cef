"""Region proposals: their algebra (`regions`), and where they come from (`generate`, `mcg`, `masks`)."""


class ProposalFileError(ValueError):
    """A proposal file that cannot be used, with a message for the person who owns it."""
