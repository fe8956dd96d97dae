# ArtMancer with ComfyUI and the gateway, for a GPU machine of your own. The steps are those of Modal's image in
# artmancer/hosting/container.py.
#
#     docker build -t artmancer .
#     docker run --gpus all -p 127.0.0.1:8003:8003 -v ./checkpoints:/checkpoints -v artmancer:/data \
#         -e ARTMANCER_API_TOKEN=... artmancer

FROM python:3.12-slim-bookworm
RUN apt-get update && apt-get install -y git && rm -rf /var/lib/apt/lists/*

# The packages and ComfyUI come before the node pack: a change of the pack does not install them again.
COPY artmancer/hosting/requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir uv==0.13.9 && \
    uv pip install --system --no-cache --no-deps --requirements /tmp/requirements.txt
RUN comfy --skip-prompt --workspace /root/comfy/ComfyUI install --nvidia --version 0.33.0 \
    --skip-manager --skip-torch-or-directml --skip-requirement
ENV COMFYUI_PATH=/root/comfy/ComfyUI
ENV DO_NOT_TRACK=1
ENV HF_HUB_DISABLE_TELEMETRY=1
ENV PYTHONUNBUFFERED=1

COPY . /root/comfy/ComfyUI/custom_nodes/artmancer
WORKDIR /root/comfy/ComfyUI/custom_nodes/artmancer

# ComfyUI finds the models in /checkpoints, which has the same layout as the volume on Modal.
RUN python -c "from artmancer.hosting.model_volume import PATHS; print(PATHS.format(root='/checkpoints'))" \
    > /root/comfy/ComfyUI/extra_model_paths.yaml

ENV HOST=0.0.0.0
ENV ARTMANCER_DATA=/data
# A second ComfyUI, for masks and tools: a click does not wait for an edit of minutes.
ENV COMFYUI_LIGHT_URL=http://127.0.0.1:8189
VOLUME ["/checkpoints", "/data"]
EXPOSE 8003
CMD ["python", "-m", "artmancer", "serve", "--with-comfyui", "--light-on-gpu"]
