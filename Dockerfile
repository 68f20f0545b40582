# CPU:   docker build -t genius-lite .
# CUDA:  docker build -t genius-lite:cuda --build-arg DEVICE=cuda .
# Run:   mkdir -p runs && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/genius-lite/runs" genius-lite run recipes/quickstart.yaml
#        (CUDA: add --gpus all). Without --user what it writes is root's, and for root alone.
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS cpu
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS cuda
# No GPU is seen while it is built, so that `native` would be a guess.
ENV CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=75-virtual;80-virtual;86-real;89-real;90-virtual"

FROM ${DEVICE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential cmake git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /genius-lite
COPY pyproject.toml README.md LICENSE ./
COPY genius_lite genius_lite
RUN pip install --no-cache-dir -c genius_lite/constraints.txt '.[smollm2]'
COPY recipes recipes
# Whoever runs it has a home: of --user, Docker knows none.
RUN mkdir -m 1777 /home/genius-lite runs
ENV HOME=/home/genius-lite
VOLUME /genius-lite/runs
ENTRYPOINT ["genius-lite"]
CMD ["--help"]
