"""A real LLM server: llama.cpp (PyPI xllamacpp) with a tiny random model that is written here in a fraction of a second."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import numpy as np

from tests.support_databases import free_port

WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 64, 2, 4, 128, 65536
WORDS = [" the", " light", " takes", " eight", " minutes", " from", " sun", " to", " earth", "."]

SERVER = """
import sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.hostnames, parameters.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
parameters.endpoint_metrics = True
parameters.n_parallel, parameters.n_ctx, parameters.cpuparams.n_threads = 8, 65536, 1
server = xllamacpp.Server(parameters)
sys.stdin.read()
"""


def write_model(path: Path) -> None:
    """A random llama of about a megabyte whose end-of-sequence token never wins, so that it runs to max_tokens."""
    import gguf

    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    for word in WORDS:
        tokens.append(word.replace(" ", "\u2581").encode())
        kinds.append(gguf.TokenType.NORMAL)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(7)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.2).astype(np.float32))

    tensor("token_embd.weight", len(tokens), WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    output = random.standard_normal((len(tokens), WIDTH)).astype(np.float32)
    output[: 3 + 256] = 0  # only words are ever said
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(WIDTH, np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        tensor(f"blk.{layer}.ffn_gate.weight", HIDDEN, WIDTH)
        tensor(f"blk.{layer}.ffn_up.weight", HIDDEN, WIDTH)
        tensor(f"blk.{layer}.ffn_down.weight", WIDTH, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """A llama.cpp server on a free loopback port; gives its URL without /v1."""
    model = folder / "tiny.gguf"
    write_model(model)
    port = free_port()
    with (folder / "llama.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(model), str(port)], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        end = monotonic() + 30
        while not _healthy(url):
            assert process.poll() is None, (folder / "llama.log").read_text()[-2000:]
            assert monotonic() < end, "llama.cpp did not come up"
            sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as reply:
            return bool(json.load(reply)["status"] == "ok")
    except OSError:
        return False
