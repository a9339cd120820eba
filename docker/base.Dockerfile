# What both images stand on: Python and the packages of requirements.lock, torch among them. Its own image, so that
# site and coordinator share these gigabytes by construction and a new fedward moves none of them.
# Built from the repository's root: docker build -f docker/base.Dockerfile -t fedward-base .

# By digest (docs/containers.md): --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /opt/fedward
COPY pyproject.toml requirements.lock LICENSE README.md ./
# The authorities that this system trusts, for networks whose proxy opens TLS.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

# The run-time packages only, each with its hash in the lock, which also names the developers'. Left out: Triton, which
# compiles kernels that fedward never asks for, and Ray, one of the simulation's engines; 1.2 GB. uv stays, Flower wants it.
RUN awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.lock > uv.lock \
 && printf 'triton\nray\n' > excludes \
 && python3 -m venv . \
 && bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --cert "${SSL_CERT_FILE}" \
      --require-hashes -r uv.lock \
 && bin/uv pip install --quiet --no-cache --system-certs --python bin/python --require-hashes --compile-bytecode \
      --constraint requirements.lock --excludes excludes \
      -r pyproject.toml --extra pkcs11 --extra awskms \
 && bin/uv pip uninstall --quiet --python bin/python pip setuptools \
 && rm uv.lock excludes pyproject.toml README.md

# A number and not a name, so that a host may give its files to it, and Kubernetes can see that it is not root.
RUN groupadd --gid 10001 fedward \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedward \
 && install --directory --owner 10001 --group 10001 --mode 0700 /srv/fedward

# Nothing outside /srv/fedward and a tmpfs at /tmp is written. Flower keeps quiet towards the outside.
ENV PATH=/opt/fedward/bin:${PATH} \
    HOME=/tmp \
    FLWR_HOME=/tmp/flwr \
    MPLCONFIGDIR=/tmp/matplotlib \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /srv/fedward
USER 10001:10001
