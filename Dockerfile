# bnfold in a container. `light` reads, judges and folds files; `full`, the default, runs models too.
#
#     docker build --target light --tag bnfold:light .
#     docker run --rm --network none --volume "$PWD:/models:ro" bnfold:light inspect .
ARG BASE=docker.io/library/python:3.12-slim-bookworm

FROM ${BASE} AS build-light
WORKDIR /source
RUN python3 -m venv /opt/bnfold
COPY pyproject.toml README.md LICENSE ./
COPY bnfold bnfold
RUN /opt/bnfold/bin/pip install --no-cache-dir --disable-pip-version-check .

FROM build-light AS build-full
RUN /opt/bnfold/bin/pip install --no-cache-dir --disable-pip-version-check ".[verify]"

FROM ${BASE} AS base
# Libraries keep files there, whoever runs this.
ENV HOME=/tmp \
    PATH="/opt/bnfold/bin:${PATH}"
USER 1000:1000
WORKDIR /models
ENTRYPOINT ["bnfold"]
CMD ["--help"]

FROM base AS light
COPY --from=build-light /opt/bnfold /opt/bnfold

FROM base AS full
COPY --from=build-full /opt/bnfold /opt/bnfold
