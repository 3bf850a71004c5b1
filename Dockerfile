# The GPU extra in one image, for Kubernetes, and through Apptainer for Slurm. docs/cluster.md says how to build it;
# it has not been built yet.
# vLLM's and torch's wheels bring the CUDA libraries. The compiler and the CUDA headers are for what DeepSpeed and
# Triton compile at their first use, hence the devel image.
# A tag can be moved: `--build-arg BASE=nvidia/cuda@sha256:...` holds the image to what you have looked at.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates g++ git iproute2 procps python3 python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/*

# KubeRay's probes call wget; Ray writes into the user's home. The storage must be writable for this user.
RUN useradd --create-home --uid 10001 ray
ENV VIRTUAL_ENV=/opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/verigrpo
# The version and the hashes of the lock.
COPY launch/requirements-cpu.lock /tmp/lock
RUN python3 -m venv /opt/venv \
    && sed -n '/^uv==/,/[^\\]$/p' /tmp/lock > /tmp/uv.txt \
    && pip install --no-cache-dir --no-deps --require-hashes -r /tmp/uv.txt \
    && rm /tmp/lock /tmp/uv.txt

COPY pyproject.toml README.md LICENSE ./
COPY grpo grpo
COPY launch launch
COPY rewards rewards
COPY sandbox sandbox
RUN uv pip install --no-cache '.[gpu,wandb]'

# By its number: Kubernetes checks `runAsNonRoot` by that.
USER 10001
WORKDIR /home/ray
