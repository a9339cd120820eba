# The image of a federation's coordinator: `up`, and every command of `fedward coordinator`.
# Built from the repository's root, after docker/base.Dockerfile: docker build -f docker/coordinator.Dockerfile -t fedward-coordinator .

ARG BASE=fedward-base
FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE fedward.py ./
COPY common common
COPY client client
COPY server server
COPY simulations simulations
# The wheel, made by the lock's tools; then what is in the image, as CycloneDX, from what is installed.
RUN sed -nE 's/^((hatchling|cyclonedx-bom)==[^ ]+).*/\1/p' requirements.lock > /tmp/tools.txt \
 && python -m venv --without-pip /tmp/tools \
 && uv pip install --quiet --no-cache --system-certs --python /tmp/tools/bin/python --require-hashes \
      --constraint requirements.lock -r /tmp/tools.txt \
 && /tmp/tools/bin/hatchling build --target wheel --directory /tmp/wheel \
 && uv pip install --quiet --no-cache --offline --no-deps --compile-bytecode \
      --python /opt/fedward/bin/python --prefix /tmp/made /tmp/wheel/*.whl \
 && rm --force /tmp/made/.lock \
 && mkdir /tmp/made/share \
 && PYTHONPATH="$(echo /tmp/made/lib/python3.*/site-packages)" \
      /tmp/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
      --output-file /tmp/made/share/sbom.cdx.json /opt/fedward/bin/python

FROM ${BASE}
COPY --from=build --chown=0:0 /tmp/made /opt/fedward
USER 10001:10001
ENV FEDWARD_COORDINATOR=/srv/fedward/hub
EXPOSE 8443
# It runs, goes round once a second, and a TLS handshake as a site makes it succeeds; if not, the check's log says why.
HEALTHCHECK --interval=30s --timeout=30s --start-period=90s --retries=2 CMD ["fedward", "coordinator", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["fedward"]
CMD ["coordinator", "up", "--resume"]
