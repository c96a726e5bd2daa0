# sogclr in a container, for a CPU or for NVIDIA GPUs:
#   docker build -t sogclr .                                  and  docker run --rm -v "$PWD:/data" sogclr train photos/ --out runs/photos
#   docker build -t sogclr:cuda --build-arg TORCH=cu130 .     and  docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" sogclr:cuda train ...
# TORCH is a folder of download.pytorch.org/whl: cpu, cu126, cu130, ... Its wheels bring the CUDA libraries; the host needs the driver alone.
FROM python:3.13-slim
ARG TORCH=cpu
# Triton compiles its launchers with a C compiler when a kernel is first used.
RUN [ "$TORCH" = cpu ] || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; }
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/$TORCH" torch torchvision
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir /src
# Any --user may run it: the caches lie beside the data.
ENV HOME=/tmp SOGCLR_CACHE=/data/.cache/sogclr HF_HOME=/data/.cache/huggingface
WORKDIR /data
ENTRYPOINT ["sogclr"]
