"""Segmentation networks (Sec. 3.3): `network` (a backbone and a head), `heads`, `grid` (their cells), `losses`
(Eq. 3-4), `targets` (training targets), `inference` (whole photos) and `crf`."""
