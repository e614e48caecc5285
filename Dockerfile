# Serves a target with an EAGLE-3 drafter on CUDA, with vLLM (the default) or SGLang:
#   docker build -t eagle3-serving .
#   docker run --gpus all -p 8000:8000 eagle3-serving MODEL --speculative-config '{"method":"eagle3",...}'
#   docker build --build-arg BASE=lmsysorg/sglang:v0.5.23 -t eagle3-sglang .
#   docker run --gpus all -p 8000:8000 --entrypoint python3 eagle3-sglang -m sglang.launch_server --port 8000 ...
ARG BASE=vllm/vllm-openai:v0.32.0
# hadolint ignore=DL3006
FROM ${BASE}
WORKDIR /opt/eagle3-serving
COPY pyproject.toml README.md LICENSE ./
COPY eagle3_serving ./eagle3_serving
# the base image already holds torch and the engine: nothing of theirs is touched
RUN python3 -m pip install --no-cache-dir --no-deps . && useradd --create-home --uid 10001 server
USER 10001
WORKDIR /home/server
EXPOSE 8000
