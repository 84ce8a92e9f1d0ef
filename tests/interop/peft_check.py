"""Holds logits against transformers and peft, and the share of right choices.

    pip install -r tests/interop/requirements-peft.txt
    cargo build --release -p edge-runtime --bins --example logits
    python tests/interop/peft_check.py MODEL_DIR TEXT [QUESTIONS.jsonl]

The model as it is; an adapter that `tune --method lora` made, loaded by peft; a run with windows,
merged by `export` and loaded by transformers. QUESTIONS are as for `eval --choices`. Exit status 1
if logits differ by 1e-3 or more, or the share of right answers at all.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "target/release/edge-runtime"
LOGITS = ROOT / "target/release/examples/logits"
MOST = 1e-3
TOKENS = 96


def run(program, *args):
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program.name} {' '.join(map(str, args))}\n{done.stderr}")
    return done.stdout


def ours(model, ids, folder, adapter=None):
    out = folder / "logits.bin"
    more = ["--adapter", adapter] if adapter else []
    run(LOGITS, "--model", model, "--ids", ",".join(map(str, ids)), "--out", out, *more)
    return np.fromfile(out, dtype="<f4").reshape(len(ids), -1)


def theirs(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def compare(what, got, wanted):
    apart = float(np.abs(got - wanted).max())
    good = got.shape == wanted.shape and apart < MOST
    print("same   " if good else "DIFFERS", f"{what}: {got.shape}, at most {apart:.1e} apart")
    return good


def listed(question):
    lines = question.splitlines()
    letters = []
    for letter in "ABCDEFGH":
        if not any(line[:1] == letter and line[1:2] in list(".):") for line in lines):
            break
        letters.append(letter)
    return letters


def right_choices(model, tokenizer, path, count, seq_len):
    """As lm-evaluation-harness's `acc`: the choice of the largest log-probability."""
    right = 0
    items = [json.loads(line) for line in path.read_text().splitlines() if line.strip()][:count]
    for item in items:
        question = item["input"]
        choices = listed(question)
        scores = []
        for choice in choices:
            gap = "" if question[-1:].isspace() else " "
            encoded = tokenizer(question + gap + choice, return_offsets_mapping=True)
            ids, spans = encoded["input_ids"], encoded["offset_mapping"]
            first = next(i for i, span in enumerate(spans) if span[1] > len(question))
            cut = max(0, len(ids) - seq_len)
            ids, first = ids[cut:], first - cut
            with torch.no_grad():
                log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            scores.append(sum(log_p[i - 1, ids[i]].item() for i in range(first, len(ids))))
        right += choices[int(np.argmax(scores))] == item["output"].strip()
    return right / len(items)


def check(path, text, questions, folder):
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(text.read_text()[:2000])["input_ids"][:TOKENS]
    base = load(path)
    good = compare("the model", ours(path, ids, folder), theirs(base, ids))
    common = ["--model", path, "--data", text, "--device", "cpu", "--steps", 8, "--batch-size", 2,
              "--seq-len", 64, "--lr", "3e-3", "--quiet"]
    lora = folder / "lora"
    run(PROGRAM, "tune", *common, "--method", "lora", "--out", lora)
    tuned = PeftModel.from_pretrained(load(path), lora).eval()
    wanted = theirs(tuned, ids)
    moved = float(np.abs(wanted - theirs(base, ids)).max())
    print(f"        (the adapter moves logits by up to {moved:.2f})")
    good &= compare("adapter in peft", ours(path, ids, folder, lora), wanted)
    windows = folder / "edge"
    run(PROGRAM, "tune", *common, "--method", "edge", "--windows", 2, "--out", windows)
    merged = folder / "merged"
    run(PROGRAM, "export", "--run", windows, "--out", merged)
    good &= compare("merged in transformers", ours(merged, ids, folder), theirs(load(merged), ids))
    if questions:
        count = 100
        report = json.loads(run(PROGRAM, "eval", "--model", path, "--choices", questions, "--device",
                                "cpu", "--max-windows", count, "--json", "--quiet").splitlines()[-1])
        wanted = right_choices(base, tokenizer, questions, count, 256)
        got = report["accuracy"]
        good &= abs(got - wanted) < 1e-9
        print(f"right choices of {count}: {got:.4f}, by transformers {wanted:.4f}")
    return good


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    path, text, *rest = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        good = check(path, text, rest[0] if rest else None, Path(folder))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
