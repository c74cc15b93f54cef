"""The whole way as a Ray job; run again, it goes on where it stopped.

ray job submit --working-dir . -- python jobs/pipeline.py RECIPE --run-dir /shared/runs/NAME [--set key=value]...
"""

import sys

from wsseg_ray.cli import main

sys.argv[1:1] = ["run"]
main()
