"""Errors that the user can fix. The message names the key, file or path, what is wrong with it, and what to do."""


class RecipeError(ValueError):
    """A recipe, or an argument of the command line, that cannot be used."""


class DatasetError(ValueError):
    """A data set, or a folder of photos, that cannot be used."""


class WeightsError(ValueError):
    """A file of weights that cannot be used."""
