# The server in an image: targets `cpu` (the default) and `gpu`. docs/deployment.md says how to build and run it.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
# For server/kernels.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# Without pip inside: pip installs from the base image, and the virtual environment is copied without it.
RUN python3 -m venv --without-pip /opt/heed
WORKDIR /src
COPY . .
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_PYTHON=/opt/heed/bin/python
# What nothing here loads: tests, and onnxruntime once more as a library for programs in C.
ENV UNUSED="-name tests -o -name libonnxruntime.so.*"

FROM builder AS builder-gpu
# The lock holds the CPU's onnxruntime; the GPU's is of the same version. CUDA and cuDNN come as Python packages, only
# the driver is the host's.
RUN sed -n 's/^onnxruntime==/onnxruntime-gpu==/p' requirements.lock >gpu.lock \
    && python3 -m pip install -c requirements.lock -c gpu.lock ".[gpu,otel]" \
    && find /opt/heed \( $UNUSED \) -prune -exec rm -r {} +

FROM builder AS builder-cpu
RUN python3 -m pip install -c requirements.lock ".[cpu,otel]" \
    && find /opt/heed \( $UNUSED \) -prune -exec rm -r {} +

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="heed" \
      org.opencontainers.image.description="Serves PyTorch self-attention encoders over gRPC, with answers proven equal to the PyTorch reference" \
      org.opencontainers.image.licenses="Apache-2.0"
# The builder compiled everything, and nothing is written at run time: the root file system can be read-only. Nor is
# anything sent: onnxruntime would report its use to its makers.
ENV PATH=/opt/heed/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HEED_HOST=0.0.0.0 \
    HEED_BUNDLE=/models/model
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001:10001
EXPOSE 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-m", "heed.server.transport.healthcheck"]
# No shell in between: the server itself is process 1 and gets SIGTERM.
ENTRYPOINT ["heed"]
# The bundle is HEED_BUNDLE: mount one there, or say `serve /models/another`.
CMD ["serve"]

FROM runtime AS gpu
COPY --from=builder-gpu /opt/heed /opt/heed

# The last target is the default.
FROM runtime AS cpu
COPY --from=builder-cpu /opt/heed /opt/heed
