"""The opt-in engine ``vllm``: Dynamo's real vLLM backend with a toy vision model, on the CPU.

It lives in a separate virtual environment, made by ``install-vllm``: PyTorch and vLLM's pins
are not for the environment that tests run in.
"""
