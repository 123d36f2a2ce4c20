# vnp in a container: the service, its command line, the bundled models. No secrets and no other
# models are baked in; deploy/README.md says how it is used.
#
#   docker build -t vnp:cpu .
#   docker build -t vnp:cuda --build-arg TORCH_INDEX= --build-arg PACKAGES="gcc libc6-dev" .
#
# BASE: a Debian with Python 3.11 or 3.12 in PATH; name it by its digest for a build that can be
# repeated. The CUDA libraries come with torch's wheel, only the driver is the host's.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Where torch without CUDA is; empty: PyPI, whose wheel has CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=embedded,parquet,object-store
WORKDIR /src
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY ops ops
COPY broker broker
COPY workers workers
COPY daemon daemon
# The lock as a limit and not as a list: it names what tests need, too.
RUN python -m venv /opt/vnp && \
    /opt/vnp/bin/pip install --no-cache-dir -c requirements.lock setuptools && \
    /opt/vnp/bin/pip install --no-cache-dir -c requirements.lock --no-build-isolation \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[${EXTRAS}]"

FROM ${BASE}
LABEL org.opencontainers.image.title="vnp" \
      org.opencontainers.image.description="Identifies viral sequences in FASTA files" \
      org.opencontainers.image.licenses="MIT"
# For GPUs gcc and libc6-dev: Triton compiles the launchers of its kernels.
ARG PACKAGES=
# procps: workflow managers ask ps what a task uses. Not pinned: a rebuild takes Debian's fixes.
# hadolint ignore=DL3008,SC2086
RUN apt-get update && \
    apt-get install -y --no-install-recommends procps ${PACKAGES} && \
    rm -rf /var/lib/apt/lists/* && \
    groupadd --gid 10001 vnp && \
    useradd --uid 10001 --gid vnp --home-dir /var/lib/vnp --create-home --shell /usr/sbin/nologin vnp
COPY --from=build /opt/vnp /opt/vnp
COPY deploy/docker/vnp-probe /usr/local/bin/vnp-probe
# NVIDIA_*: what the container runtime lets in.
ENV PATH=/opt/vnp/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/vnp
# No ENTRYPOINT: workflow managers start a shell. No init: vnpd takes signals as process 1 and waits
# for its children. No HEALTHCHECK: most containers are one `vnp run`; for a vnpd that listens it is
# --health-cmd 'vnp-probe healthz'.
CMD ["vnp", "--help"]
