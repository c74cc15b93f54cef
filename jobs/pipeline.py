"""A run as a Ray job: `wsseg run`, all stages or, with `--until STAGE`, the first ones. Run again, it goes on.

ray job submit --working-dir . -- python jobs/pipeline.py RECIPE --run-dir /shared/runs/NAME [--set key=value]...
"""

import sys

from wsseg_ray.cli import main

sys.argv[1:1] = ["run"]
main()
