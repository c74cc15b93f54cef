"""`python -m wsseg_ray` is `wsseg`."""

from wsseg_ray.cli import main

main()
