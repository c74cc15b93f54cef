# The image of rayjob.yaml; cluster.yaml can use it too.
#   docker build -t wsseg:cpu .
#   docker build -t wsseg:gpu --build-arg BASE=rayproject/ray:2.60.0-py311-gpu --build-arg EXTRA=gpu .
ARG BASE=rayproject/ray:2.60.0-py311
FROM ${BASE}
ARG EXTRA=cpu
# wsseg_ray/engine/ray_runner.py says why.
ENV RAY_idle_worker_killing_time_threshold_ms=120000
WORKDIR project
COPY --chown=ray pyproject.toml README.md LICENSE ./
COPY --chown=ray wsseg_ray ./wsseg_ray
COPY --chown=ray jobs ./jobs
RUN pip install --no-cache-dir ".[${EXTRA},timm,serve]"
# The image is of no use where this fails.
RUN cd / && wsseg recipes
