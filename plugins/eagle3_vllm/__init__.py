"""EAGLE-3 for the stock vLLM: any dialect of drafter, and draft trees where Model Runner V2 runs.

vLLM loads it by itself (`vllm.general_plugins`) in every process. What can be set stands in `eagle3_vllm.settings`.
"""


def register() -> None:
    """The entry point. Never stops a server that does not draft: what is wrong is said in one line."""
    from eagle3_vllm.registration import register_all

    register_all()
