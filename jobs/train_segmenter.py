"""The pipeline up to the stage `train_segmenter`, as a Ray job; stages that are done are skipped.

ray job submit --working-dir . -- python jobs/train_segmenter.py RECIPE --run-dir /shared/runs/NAME [--set key=value]...
"""

import sys

from wsseg_ray.cli import main

sys.argv[1:] = ["run", *sys.argv[1:], "--until", "train_segmenter"]
main()
