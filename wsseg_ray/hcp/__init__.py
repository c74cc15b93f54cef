"""Hypothesis-CNN-Pooling (Sec. 3.1): a classifier of regions, trained from image-level labels alone.

`trunk` (conv layers, weights, freezing), `network` (the classifier), `pooling` (region features), `hypotheses`
(which proposals train it), `loss`, and `reduction` (PCA of its features, Sec. 3.2).
"""
