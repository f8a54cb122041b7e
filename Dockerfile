# gift-ray for a cluster's nodes: PyTorch's own wheels bring CUDA, the host its driver.
#   docker build -t REGISTRY/gift-ray:0.1 .
FROM python:3.11-slim

# bash and wget: KubeRay asks a node for its health with them. git: records name the commit, if it is there.
RUN apt-get update \
 && apt-get install -y --no-install-recommends bash git openssh-client rsync wget \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /gift-ray
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY gift_ray gift_ray
# Editable: jobs, drivers and workers read one copy. NudeNet's licence is its user's to accept:
# --build-arg EXTRAS=hub,nudenet
ARG EXTRAS=hub
RUN pip install --no-cache-dir 'uv>=0.8,<1' \
 && uv pip install --system --no-cache --editable ".[${EXTRAS}]"
COPY jobs jobs
COPY configs configs

# What `ray start` reads: only nodes with the cluster's token take part, processes are kept warm (the
# models they have loaded are the point), a machine that is taken back gets its time to save.
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_idle_worker_killing_time_threshold_ms=300000 \
    RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=90 \
    HF_HOME=/shared/huggingface

# As KubeRay and `ray up` expect, and never root.
RUN useradd --create-home --uid 1000 ray && chown -R ray /gift-ray
USER ray
CMD ["python", "jobs/sweep.py", "configs/demo.yaml"]
