# emtoolkit for a rented machine with NVIDIA GPUs: docs/guides/rented-machine.md. The wheels of torch hold CUDA; the
# machine brings the driver.
FROM python:3.11-slim-bookworm

COPY pyproject.toml README.md LICENSE /opt/emtoolkit/
COPY configs /opt/emtoolkit/configs
COPY emtoolkit /opt/emtoolkit/emtoolkit
RUN pip install --no-cache-dir /opt/emtoolkit

# The volume outlives the container: checkpoints, the store of trajectories and downloaded models belong there.
ENV EMTOOLKIT_HOME=/workspace/.emtoolkit HF_HOME=/workspace/.huggingface
WORKDIR /workspace
CMD ["emtoolkit", "--help"]
