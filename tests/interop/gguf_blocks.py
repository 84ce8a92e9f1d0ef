"""Makes crates/edge-runtime/src/gguf/fixtures/blocks.safetensors: random blocks of each type of a
GGUF tensor with the values that the package `gguf` (ggml's own, in numpy) has for them, and values
with the blocks that it makes of them.

    pip install -r tests/interop/requirements.txt
    python tests/interop/gguf_blocks.py
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

# Where the f16 scales of a block are, bytes.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}

rng = np.random.default_rng(7)
tensors = {}
for name, scales in SCALES.items():
    values, size = GGML_QUANT_SIZES[Type[name]]
    count = 2 if values == 32 else 1
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        scale = rng.uniform(-0.1, 0.1, (count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8)
    tensors[f"{name}.blocks"] = blocks
    tensors[f"{name}.values"] = dequantize(blocks, Type[name]).reshape(-1)

# The second block is zeros, the third has its largest value twice with both signs.
given = rng.normal(0, 0.05, (4, 32)).astype(np.float32)
given[1] = 0
given[2, [3, 9]] = [0.5, -0.5]
tensors["given"] = given.reshape(-1)
for name in ["Q8_0", "Q4_0"]:
    tensors[f"{name}.made"] = quantize(given, Type[name])

out = Path(__file__).parents[2] / "crates/edge-runtime/src/gguf/fixtures/blocks.safetensors"
save_file(tensors, out)
print(out, out.stat().st_size, "bytes")
