"""Measures of maps, masks and networks: confusion matrices, IoU, average precision."""
