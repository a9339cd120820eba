# The image of a hospital's site: the resident agent, and every command of `fedward site`.
# Built from the repository's root, after docker/base.Dockerfile: docker build -f docker/site.Dockerfile -t fedward-site .

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
ENV FEDWARD_SITE=/srv/fedward/site
# An agent that has said nothing for 30 s, or heard nothing for 90 s, is not healthy, and the log of the check says why.
HEALTHCHECK --interval=60s --timeout=30s --start-period=90s --retries=2 CMD ["fedward", "site", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["fedward"]
CMD ["site", "up"]
