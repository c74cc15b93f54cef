"""What a person can mend: errors whose message names the key, file or path, what is wrong with it and the way out."""


class RecipeError(ValueError):
    """A recipe, or a word of the command line, that cannot be used."""


class DatasetError(ValueError):
    """A data set, or a folder of photos, that cannot be used."""


class WeightsError(ValueError):
    """A file of weights that cannot be used."""
