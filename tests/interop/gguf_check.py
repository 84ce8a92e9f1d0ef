"""Exports models to GGUF and holds llama.cpp's greedy continuation against `generate`'s.

    pip install -r tests/interop/requirements.txt
    cargo build --release -p edge-runtime
    python tests/interop/gguf_check.py MODEL_DIR [MODEL_DIR:ADAPTER_DIR ...]

Of each model it writes every type; of a model with an adapter also base and adapter apart, which
llama.cpp puts together. Exit status 1 if f16 or an adapter differs. Of q8_0 and q4_0 differences
are shown alone: llama.cpp rounds activations to 8 bits there, so that close tokens change places.
Take models that write text: bytes that are none are shown in many ways.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import xllamacpp
from gguf import GGUFReader
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "target/release/edge-runtime"
PROMPTS = ["Once upon a time", "The dog said: \"hello\"\n\nThen he", " 12 caf\u00e9s"]
TOKENS = 16


def edge(*args):
    done = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"edge-runtime {' '.join(map(str, args))}\n{done.stderr}")
    return done.stdout


def generate(model, prompt, adapter=None):
    more = ["--adapter", adapter] if adapter else []
    text = edge("generate", "--model", model, "--device", "cpu", "--temperature", 0, "--prompt",
                prompt, "--max-new-tokens", TOKENS, "--quiet", *more)
    return text.rstrip("\n")


class Llama:
    """llama.cpp with a model, and perhaps an adapter."""

    def __init__(self, model, tokenizer, adapter=None):
        self.tokenizer = tokenizer
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
        params.warmup = False
        params.verbosity = 0
        params.cpuparams.n_threads = 2
        if adapter:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = xllamacpp.Server(params)

    def post(self, path, body):
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, data, kind)
        return json.load(urllib.request.urlopen(request))

    def generate(self, prompt):
        """The text by llama.cpp, and by the model's own tokenizer."""
        start = self.post("/tokenize", {"content": prompt, "add_special": True})["tokens"]
        body = {"prompt": start, "n_predict": TOKENS, "temperature": 0, "cache_prompt": False,
                "return_tokens": True}
        done = self.post("/completion", body)
        return [prompt + done["content"], self.tokenizer.decode(start + done["tokens"])]


def compare(what, texts, wanted):
    got = next((text for text in texts if text.rstrip("\n") == wanted), texts[0])
    same = got.rstrip("\n") == wanted
    print("same   " if same else "differs", what, repr(got[-40:]), *([] if same else [repr(wanted)]))
    return same


def check(model, adapter, out):
    more = ["--adapter", adapter] if adapter else []
    good = True
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for kind in ["f16", "q8_0", "q4_0"]:
        folder = out / kind
        edge("export", "--model", model, *more, "--format", "gguf", "--gguf-type", kind, "--out",
             folder)
        file = folder / f"model-{kind}.gguf"
        reader = GGUFReader(file)
        print(file.name, len(reader.tensors), "tensors", len(reader.fields), "keys")
        llama = Llama(file, tokenizer)
        for prompt in PROMPTS:
            same = compare(kind, llama.generate(prompt), generate(file, prompt))
            good &= same or kind != "f16"
    if adapter:
        edge("export", "--model", model, "--format", "gguf", "--out", out / "base")
        edge("export", "--model", model, *more, "--format", "gguf-adapter", "--out", out / "lora")
        llama = Llama(out / "base/model-f16.gguf", tokenizer, out / "lora/adapter.gguf")
        for prompt in PROMPTS:
            good &= compare("lora", llama.generate(prompt), generate(model, prompt, adapter))
    return good


def main():
    good = True
    for pair in sys.argv[1:]:
        model, _, adapter = pair.partition(":")
        print("==", pair)
        with tempfile.TemporaryDirectory() as out:
            good &= check(Path(model), adapter or None, Path(out))
    sys.exit(0 if good and sys.argv[1:] else 1)


if __name__ == "__main__":
    main()
