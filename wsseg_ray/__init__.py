"""Learn to segment from image-level labels, as a distributed job on Ray.

The method is "Learning to Segment with Image-level Annotations" (Wei et al., Pattern Recognition 2016).
"""

__version__ = "0.1.0"
