"""Localization maps and rough masks (Sec. 3.3): what the segmentation networks are trained on."""
