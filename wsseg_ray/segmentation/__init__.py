"""Segmentation networks (Sec. 3.3): `deeplab` (the networks), `losses` (Eq. 3-4), `targets` (what they are shown)."""
