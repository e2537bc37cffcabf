# syntax=docker/dockerfile:1
# The server for an NVIDIA GPU. Build: docker build -f deploy/images/gpu.Dockerfile -t levi-serve-gpu .
# Run:  docker run --rm --gpus all -p 8000:8000 -v "$PWD/model_repo:/models:ro" levi-serve-gpu
# ONNX Runtime's GPU wheel wants CUDA 12 and cuDNN 9, which the base brings along.

FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3=3.12.* python3-venv=3.12.* \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY levi_serve levi_serve
COPY training training
# The CPU's runtime has the same files as the GPU's: only one of the two may be there.
RUN python3 -m venv /opt/levi \
 && /opt/levi/bin/pip install --no-cache-dir --constraint constraints.txt ".[gpu]" \
 && rm -rf /opt/levi/lib/python3.12/site-packages/training /opt/levi/bin/levi-train

FROM base
RUN useradd --system --no-create-home --uid 10001 levi \
 && install --directory --owner levi /state /feedback
COPY --from=build /opt/levi /opt/levi
ENV PATH=/opt/levi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LEVI_HOST=0.0.0.0 \
    LEVI_MODEL_REPO=/models \
    LEVI_DEVICE=cuda
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=2s --start-period=30s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=1)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["levi-serve"]
