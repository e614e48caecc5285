# Serves a target with an EAGLE-3 drafter on CUDA, with vLLM or SGLang; only the asked-for engine's image is pulled.
#   docker build -t eagle3-vllm .
#   docker run --gpus all -p 8000:8000 eagle3-vllm MODEL --speculative-config '{"method":"eagle3","model":"DRAFTER","num_speculative_tokens":3}'
#   docker build -t eagle3-sglang --build-arg ENGINE=sglang .
#   docker run --gpus all -p 8000:8000 eagle3-sglang --model-path MODEL --speculative-algorithm EAGLE3 --speculative-draft-model-path DRAFTER
ARG ENGINE=vllm

FROM vllm/vllm-openai:v0.32.0 AS vllm
ENTRYPOINT ["vllm", "serve", "--port", "8000"]

FROM lmsysorg/sglang:v0.5.23 AS sglang
ENTRYPOINT ["python3", "-m", "sglang.launch_server", "--host", "0.0.0.0", "--port", "8000"]

# hadolint ignore=DL3006
FROM ${ENGINE}
WORKDIR /src
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY eagle3_serving ./eagle3_serving
COPY plugins ./plugins
# the engine's own torch satisfies ours, so pip leaves it; the variable is for bases whose Python is the system's
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir . && useradd --create-home --uid 10001 server
USER 10001
WORKDIR /home/server
EXPOSE 8000
