#!/usr/bin/env python3
"""Turns a checkpoint of train.py into a Hugging Face folder, checks it with transformers, and writes its model card.

    python3 export.py --work WORK --out ../tandem-stories-5m
"""

import argparse
import json
import math
import os
import platform
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from train import SPECIAL, Llama, Shape, held_out_loss

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
         "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
         "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def tensors(model):
    """The weights under Hugging Face's names. The embedding is tied: it is stored once."""
    out = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm.weight}
    for i, block in enumerate(model.blocks):
        for name, p in block.named_parameters():
            out[f"model.layers.{i}.{NAMES[name.removesuffix('.weight')]}.weight"] = p
    return {name: p.detach().to(torch.bfloat16).contiguous() for name, p in out.items()}


def write(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model, work, out):
    s = model.s
    out.mkdir(parents=True, exist_ok=True)
    new = out / "model.safetensors.new"
    save_file(tensors(model), str(new), metadata={"format": "pt"})
    new.chmod(0o644)
    os.replace(new, out / "model.safetensors")
    shutil.copyfile(work / "tokenizer.json", out / "tokenizer.json")
    token = {name: i for i, name in enumerate(SPECIAL)}
    eos, end = token["<|endoftext|>"], token["<|end|>"]
    write(out / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": s.vocab, "hidden_size": s.hidden, "intermediate_size": s.ffn, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head,
        "max_position_embeddings": s.context, "rope_theta": s.rope_theta, "rope_scaling": None,
        "rms_norm_eps": s.norm_eps, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": True, "use_cache": True,
        "bos_token_id": eos, "eos_token_id": eos, "torch_dtype": "bfloat16",
    })
    write(out / "generation_config.json", {
        "bos_token_id": eos, "eos_token_id": [eos, end], "pad_token_id": eos,
        "do_sample": True, "temperature": 0.8, "top_p": 0.95,
    })
    write(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False,
        "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "model_max_length": s.context, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): {"content": name, "lstrip": False, "normalized": False, "rstrip": False,
                                          "single_word": False, "special": True} for name, i in token.items()},
        "chat_template": TEMPLATE,
    })
    (out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def check(model, out):
    """The folder, loaded by transformers in f32, gives the logits of our own forward pass."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    text = "Once upon a time there was a king, who had a daughter.\n\n'Good-bye!' said she; and it's 1900."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text, tokenizer.decode(ids[0])
    assert ids[0].tolist() == Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids
    with torch.no_grad():
        difference = (theirs(ids).logits - model(ids)).abs().max().item()
    assert difference < 1e-3, difference
    chat = tokenizer.apply_chat_template([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
                                         tokenize=False, add_generation_prompt=True)
    assert chat == "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\n", chat
    return tokenizer, theirs, difference


PROMPTS = [
    ("text", "Once upon a time"),
    ("text", "The door opened, and"),
    ("chat", "Tell me a story about a princess."),
]


def samples(tokenizer, model):
    for seed, (kind, prompt) in enumerate(PROMPTS):
        text = prompt
        if kind == "chat":
            text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt").input_ids
        torch.manual_seed(seed)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=160, do_sample=True,
                              temperature=0.8, top_p=0.95, top_k=0)
        yield kind, prompt, tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip("\n")


HISTORY = (
    "Muon for the blocks' matrices, AdamW for the embedding and norms; linear decay to zero by the clock, so the number "
    "of tokens seen depends on how busy the machine is, and a second run gives another model of the same kind."
)


def card(a, model, saved, counts, loss, made):
    s, per_token = model.s, counts["characters"] / counts["held_out"]
    hours = saved["seconds"] / 3600
    quote = lambda text: "\n".join("> " + line if line else ">" for line in text.split("\n"))
    shown = "\n\n".join(
        (f"{'Prompt' if kind == 'text' else 'Chat message'}: `{prompt}`\n\n" + quote((prompt if kind == "text" else "") + (" " if kind == "text" and not text.startswith((" ", ",", ".", "\n")) else "") + text))
        for kind, prompt, text in made
    )
    return f"""---
license: cc0-1.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {a.out.name}

A {counts['parameters'] / 1e6:.1f} M parameter Llama that writes English in the manner of old children's books. It is bundled so that a fresh clone of Tandem has a real model: it loads at once and goes through every part of the real path (Llama blocks, grouped-query attention, RoPE, tied embeddings, byte-level BPE, a chat template). It is a test model, not an assistant.

| | |
| --- | --- |
| shape | {s.layers} layers, hidden {s.hidden}, {s.heads} heads of {s.head}, {s.kv_heads} key/value heads, SwiGLU {s.ffn}, context {s.context}, RoPE theta {s.rope_theta:.0f}, RMSNorm, tied embedding, bf16 |
| tokenizer | byte-level BPE with GPT-2's pre-tokenizer, {s.vocab} tokens, {per_token:.2f} characters per token on the held-out text; no BOS |
| special tokens | {", ".join(f"`{t}`" for t in SPECIAL)}; generation ends at `<|endoftext|>` or `<|end|>` |
| data | 29 story books from Project Gutenberg (11.8 M characters, {counts['train'] / 1e6:.2f} M training tokens). The last fortieth of each book is held out ({counts['held_out'] / 1e3:.0f} k tokens), from the tokenizer too. |
| chat | about 8 % of the sequences are conversations in the template's form, cut from the same training text |
| tokens seen | {saved['seen'] / 1e6:.1f} M in {saved['step']} steps |
| training loss | {saved['train_loss']:.3f} nats per token (running mean, chat included) |
| held-out loss | **{loss:.3f}** nats per token (of the exported bf16 weights), {loss / per_token:.3f} per character, perplexity {math.exp(loss):.1f} |
| machine | {a.machine or f'{os.cpu_count()} CPU cores ({platform.machine()})'}; PyTorch {torch.__version__} |
| wall time | {hours:.2f} h of training steps, {saved['seen'] / saved['seconds']:.0f} tokens/s |
| licence | the texts are in the public domain (United States); weights and tokenizer add no restriction of their own (CC0) |

## Samples
Temperature 0.8, top-p 0.95, at most 160 tokens, the first try of each.

{shown}

## Made by
In `cluster/models/training`, with `stories.txt` at the default `--data` path or named there:

```
{a.command}
```

{a.history}

## Limits
- It knows 29 books and nothing else: no facts, no instructions, no code, no other language. A chat answer is a story passage, touched by the message at best.
- It mostly holds a short sentence together, less often a long one; it holds no plot, and who is who drifts within a paragraph.
- Beyond {s.context} tokens it has never been trained.
- The texts are a century old and more, and carry the manners and prejudices of their time.{a.note}
"""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, required=True, help="the directory train.py worked in")
    p.add_argument("--out", type=Path, required=True, help="the folder to write")
    p.add_argument("--machine", default="", help="for the model card")
    p.add_argument("--command", default="python3 train.py --work WORK\npython3 export.py --work WORK --out ../tandem-stories-5m")
    p.add_argument("--history", default=HISTORY, help="what the commands do, for the model card")
    p.add_argument("--note", default="", help="one more limit, for the model card")
    a = p.parse_args()
    a.out = a.out.resolve()
    a.note = f"\n- {a.note}" if a.note else ""
    import numpy as np

    torch.set_num_threads(2)
    saved = torch.load(a.work / "checkpoint.pt", weights_only=True)
    model = Llama(Shape(**saved["shape"])).eval()
    model.load_state_dict({name: p.to(torch.bfloat16).float() for name, p in saved["model"].items()})
    export(model, a.work, a.out)
    tokenizer, theirs, difference = check(model, a.out)
    held_out = np.load(a.work / "tokens-held-out.npy")
    loss = held_out_loss(model, held_out, model.s.context)
    counts = {"parameters": sum(p.numel() for p in model.parameters()), "held_out": len(held_out),
              "characters": len(tokenizer.decode(held_out.tolist())), "train": len(np.load(a.work / "tokens-train.npy"))}
    made = list(samples(tokenizer, theirs))
    (a.out / "README.md").write_text(card(a, model, saved, counts, loss, made), encoding="utf-8")
    print(json.dumps({"step": saved["step"], "seen": saved["seen"], "held_out_loss": round(loss, 4),
                      "logit_difference": difference, "bytes": (a.out / "model.safetensors").stat().st_size}))
    for kind, prompt, text in made:
        print(f"--- {kind}: {prompt}\n{text}")


if __name__ == "__main__":
    main()
