# syntax=docker/dockerfile:1
# The server without torch. Build: docker build -t levi-serve .
# Run:  docker run --rm -p 8000:8000 -v "$PWD/model_repo:/models:ro" levi-serve

FROM python:3.11-slim AS build
# With others besides: docker build --build-arg EXTRAS=cpu,triton,score .
ARG EXTRAS=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY levi_serve levi_serve
COPY training training
RUN python -m venv /opt/levi \
 && /opt/levi/bin/pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]" \
 && rm -rf /opt/levi/lib/python3.11/site-packages/training /opt/levi/bin/levi-train

FROM python:3.11-slim
# 10001 is nobody's id on usual hosts; the files belong to root and cannot be changed by the server.
RUN useradd --system --no-create-home --uid 10001 levi \
 && install --directory --owner levi /state /feedback
COPY --from=build /opt/levi /opt/levi
ENV PATH=/opt/levi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LEVI_HOST=0.0.0.0 \
    LEVI_MODEL_REPO=/models
USER 10001
EXPOSE 8000
# Alive, not ready: a server that still loads, or waits for a usable version, is not to be killed.
HEALTHCHECK --interval=10s --timeout=2s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=1)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["levi-serve"]
