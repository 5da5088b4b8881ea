# The image that tasks run in: Debian's Python 3.11, torch for CUDA 11.8, everything from PyPI locked by hash.
# apptainer.def makes the same from the same files; docs/container.md tells how to build either.
ARG BASE_IMAGE=debian:bookworm-slim
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv tini \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/medsyn && useradd --uid 1000 --create-home medsyn

# Which torch, and where pip finds it. The secrets are for networks whose TLS is signed by an authority of their own.
ARG TORCH_REQUIREMENTS=requirements-cu118.txt
ARG TORCH_INDEX_URL
COPY ${TORCH_REQUIREMENTS} /opt/medsyn/lock/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt,required=false \
    /opt/medsyn/bin/pip install --no-cache-dir --no-deps --require-hashes \
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -r "/opt/medsyn/lock/$TORCH_REQUIREMENTS"
COPY requirements.txt requirements-build.txt /opt/medsyn/lock/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt,required=false \
    /opt/medsyn/bin/pip install --no-cache-dir --no-deps --require-hashes \
    -r /opt/medsyn/lock/requirements.txt -r /opt/medsyn/lock/requirements-build.txt
COPY requirements-cuda11.txt /opt/medsyn/lock/
# bitsandbytes brings a library for every CUDA: 0.2 GB are for versions that no torch above is made for
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt,required=false \
    /opt/medsyn/bin/pip install --no-cache-dir --no-deps --require-hashes -r /opt/medsyn/lock/requirements-cuda11.txt \
    && find /opt/medsyn/lib -name "libbitsandbytes_cuda1*" ! -name "*cuda118*" ! -name "*cuda121*" -delete
# not LD_LIBRARY_PATH, which Apptainer sets for the driver
RUN ls -d /opt/medsyn/lib/python3.11/site-packages/nvidia/*/lib >/etc/ld.so.conf.d/medsyn-cuda11.conf && ldconfig
WORKDIR /opt/medsyn/lock
RUN sha256sum ./*.txt >/opt/medsyn/lock/sha256

# Code last: a change of it builds in seconds. HF_HOME and OMP_NUM_THREADS are the host's to set, so they are not here.
COPY pyproject.toml README.md LICENSE /opt/medsyn/source/
COPY configs /opt/medsyn/source/configs
COPY slurm/*.yaml /opt/medsyn/source/slurm/
COPY medsyn /opt/medsyn/source/medsyn
RUN /opt/medsyn/bin/pip install --no-cache-dir --no-deps --no-index --no-build-isolation /opt/medsyn/source \
    && mv /opt/medsyn/source/configs /opt/medsyn/configs \
    && rm -r /opt/medsyn/source \
    && chmod -R a+rX /opt/medsyn/configs /opt/medsyn/lock

ENV PATH=/opt/medsyn/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONNOUSERSITE=1 \
    PYTHONSAFEPATH=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="medsyn" \
      org.opencontainers.image.description="Stable Diffusion for medical images as resumable Slurm campaigns" \
      org.opencontainers.image.version="0.5.0"
USER 1000
WORKDIR /home/medsyn
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/medsyn/bin/medsyn"]
CMD ["--help"]
