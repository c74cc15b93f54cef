"""The pipeline up to the stage `refine`, as a Ray job; stages that are done are skipped.

ray job submit --working-dir . -- python jobs/refine.py RECIPE --run-dir /shared/runs/NAME [--set key=value]...
"""

import sys

from wsseg_ray.cli import main

sys.argv[1:] = ["run", *sys.argv[1:], "--until", "refine"]
main()
