#!/usr/bin/env python3
"""Trains the bundled story model: a byte-level BPE tokenizer and a small Llama, on a CPU.

    python3 train.py --work WORK --long-at +40 --decay-at +20 --stop-at +120

Everything it makes goes into WORK: tokenizer.json, tokens-*.npy, log.jsonl and checkpoint.pt.
Started again with the same WORK it goes on from the last checkpoint. The learning rate follows
the clock (warm-up, plateau, linear decay to zero at --stop-at), so a busy machine makes the run
see fewer tokens, never end late. `export.py` turns a checkpoint into a Hugging Face folder.
"""

import argparse
import json
import os
import random
import re
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[3]
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
HELD_OUT = 40  # the last fortieth of every text is held out


# ---------------------------------------------------------------- the model


@dataclass
class Shape:
    vocab: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 704
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0  # while training, of what each block adds

    @property
    def head(self):
        return self.hidden // self.heads


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def project(x, *weights):
    """x times the stacked weights: one multiplication for several projections."""
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return F.linear(x, weight.to(x.dtype))


def attention(q, k, v, rows=128):
    """Causal attention, `rows` queries at a time, so that what the mask hides is mostly never computed.
    Compiled, it takes a third of the time of torch's own CPU kernel at this head size."""
    q, mixed = q * q.shape[-1] ** -0.5, []
    for start in range(0, q.shape[2], rows):
        end = min(start + rows, q.shape[2])
        mask = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
        scores = (q[:, :, start:end] @ k[:, :, :end].mT).float().masked_fill(~mask, float("-inf"))
        mixed.append(scores.softmax(-1).to(v.dtype) @ v[:, :, :end])
    return torch.cat(mixed, 2)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        matrix = lambda rows, columns: nn.Parameter(torch.randn(rows, columns) * columns**-0.5 * 0.7)
        kv = s.kv_heads * s.head
        self.attention_norm, self.ffn_norm = Norm(s.hidden, s.norm_eps), Norm(s.hidden, s.norm_eps)
        self.q, self.k, self.v = matrix(s.hidden, s.hidden), matrix(kv, s.hidden), matrix(kv, s.hidden)
        self.gate, self.up = matrix(s.ffn, s.hidden), matrix(s.ffn, s.hidden)
        # What writes into the residual stream starts at zero: every block starts as the identity.
        self.o = nn.Parameter(torch.zeros(s.hidden, s.hidden))
        self.down = nn.Parameter(torch.zeros(s.hidden, s.ffn))

    def forward(self, x, cos, sin):
        s, (batch, length, _) = self.s, x.shape
        kv = s.kv_heads * s.head
        q, k, v = project(self.attention_norm(x), self.q, self.k, self.v).split([s.hidden, kv, kv], -1)

        def rotated(t):
            t = t.view(batch, length, -1, s.head).transpose(1, 2)
            low, high = t.float().chunk(2, -1)
            return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)

        def shared(t):  # each key/value head serves heads / kv_heads query heads, as in Llama
            return t[:, :, None].expand(-1, -1, s.heads // s.kv_heads, -1, -1).flatten(1, 2)

        q, k = rotated(q), shared(rotated(k))
        v = shared(v.reshape(batch, length, s.kv_heads, s.head).transpose(1, 2))
        mixed = attention(q, k, v)
        x = x + self.dropped(project(mixed.transpose(1, 2).reshape(batch, length, s.hidden), self.o))
        gate, up = project(self.ffn_norm(x), self.gate, self.up).chunk(2, -1)
        return x + self.dropped(project(F.silu(gate) * up, self.down))

    def dropped(self, x):
        return F.dropout(x, self.s.dropout) if self.training and self.s.dropout > 0 else x


class Llama(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.embedding = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = Norm(s.hidden, s.norm_eps)

    def forward(self, tokens, dtype=torch.float32):
        s = self.s
        rate = s.rope_theta ** (-torch.arange(0, s.head, 2, device=tokens.device) / s.head)
        angle = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * rate
        x = F.embedding(tokens, self.embedding).to(dtype)
        for block in self.blocks:
            x = block(x, angle.cos(), angle.sin())
        return project(self.norm(x), self.embedding)

    def loss(self, tokens, dtype=torch.bfloat16):
        logits = self(tokens[:, :-1], dtype).flatten(0, 1)
        return F.cross_entropy(logits.float(), tokens[:, 1:].flatten())


# ---------------------------------------------------------------- the optimiser


def orthogonal(g):
    """Newton-Schulz: a batch of matrices [n, rows, columns] to their nearest semi-orthogonal ones, roughly."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
        y = x @ x.mT
        x = a * x + (b * y + c * (y @ y)) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    """Muon for the blocks' matrices, AdamW for the embedding and the norms."""

    def __init__(self, model, muon_rate, adam_rate, decay):
        self.muon_rate, self.adam_rate, self.decay = muon_rate, adam_rate, decay
        matrices = [p for b in model.blocks for p in b.parameters() if p.ndim == 2]
        self.groups = {}
        for p in matrices:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.momentum = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}
        scaled = {id(p) for p in matrices}
        self.rest = [p for p in model.parameters() if id(p) not in scaled]
        self.adam = torch.optim.AdamW(self.rest, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, factor, momentum=0.95):
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * factor
        self.adam.step()
        rate = self.muon_rate * factor
        for shape, ps in self.groups.items():
            g = torch.stack([p.grad for p in ps])
            m = self.momentum[shape].lerp_(g, 1 - momentum)
            update = orthogonal(g.lerp_(m, momentum)) * max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(ps, update):
                p.mul_(1 - rate * self.decay).sub_(u, alpha=rate)

    def state(self):
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def restore(self, state):
        self.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])


# ---------------------------------------------------------------- the data


def texts(path):
    """(training text, held-out text) of each story book, both cut at paragraph ends."""
    for text in path.read_text(encoding="utf-8").split("<|endoftext|>"):
        paragraphs = [p.strip() for p in text.strip().split("\n\n") if p.strip()]
        rest, cut = sum(map(len, paragraphs)) / HELD_OUT, len(paragraphs)
        while rest > 0:
            cut -= 1
            rest -= len(paragraphs[cut])
        yield paragraphs[:cut], paragraphs[cut:]


def train_tokenizer(path, vocab, out):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["\n\n".join(train) for train, _ in texts(path)], trainer)
    tokenizer.save(str(out))


# A noun after an article, or a name inside a sentence: what a user might ask a story about.
TOPIC = re.compile(r"(?<=\b(?:the|his|her) )[a-z]{3,}(?=[,.;:!?]| of\b| and\b| was\b| had\b| in\b)|(?<=[a-z,] )[A-Z][a-z]{2,}\b")


OPENING = re.compile(r"Once\b|There (?:once|(?:was|were|lived) (?:once|an?|two|three|in))\b|Long,? |Many years ago|A long time ago|One day\b|In (?:a|the) .{0,40}\bthere (?:was|lived)|A (?:poor|king|certain|soldier|woman|man)\b", re.I)


def passage(paragraphs, at):
    """The paragraphs from `at` on, as many as make an answer."""
    turns, size = [], 0
    for p in paragraphs[at : at + 12]:
        if size + len(p) > 1300 and turns:
            break
        turns.append(p[:1600])
        size += len(p)
    return turns


def conversation(paragraphs, at, openings, dice):
    """A chat in the template's form. The assistant goes on from the paragraph at `at`, or starts a story as stories start."""
    turns, said = passage(paragraphs, at), []
    if dice.random() < 0.15:
        said.append(("system", dice.choice(["You are a storyteller.", "You are a helpful assistant.", "You tell stories.", "Answer with a story."])))
    kind = dice.random()
    if kind < 0.35 and len(turns) > 1:  # continue the user's paragraph
        ask = dice.choice(["Continue the story: ", "Continue: ", "Go on with this story:\n\n", "What happens next?\n\n", ""])
        said += [("user", ask + turns[0]), ("assistant", "\n\n".join(turns[1:]))]
    else:
        if dice.random() < 0.9:
            turns = passage(*dice.choice(openings))
        topic = dice.choice(TOPIC.findall(" ".join(turns)) or ["king"])
        topic = topic if topic[0].isupper() else "a " + topic
        ask = dice.choice(["Tell me a story.", "Tell me a story about {}.", "Tell a story about {}.", "A story about {}, please.",
                           "Write a story about {}.", "Write a story.", "Once upon a time", "Hello!", "Tell me about {}."]).format(topic)
        cut = dice.randint(1, len(turns) - 1) if len(turns) > 2 and dice.random() < 0.4 else len(turns)
        said += [("user", ask), ("assistant", "\n\n".join(turns[:cut]))]
        if cut < len(turns):
            said += [("user", dice.choice(["Go on.", "And then?", "What happened next?", "Continue."])), ("assistant", "\n\n".join(turns[cut:]))]
    return "".join(f"<|{role}|>\n{content}<|end|>\n" for role, content in said)


def prepare(data, work, vocab):
    """The tokenizer, then token arrays: training text, held-out text, and whole conversations with their offsets."""
    from tokenizers import Tokenizer

    if not (work / "tokenizer.json").exists():
        train_tokenizer(data, vocab, work / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    if not (work / "tokens-chat.npz").exists():
        encode = lambda text: np.array(tokenizer.encode(text).ids, dtype=np.int16)
        books = list(texts(data))
        for name, half in [("train", 0), ("held-out", 1)]:
            joined = [encode("<|endoftext|>" + "\n\n".join(b[half]) + "\n\n") for b in books]
            np.save(work / f"tokens-{name}.npy", np.concatenate(joined))
        dice, chats = random.Random(7), []
        openings = [(b[0], i) for b in books for i, p in enumerate(b[0]) if len(p) > 80 and OPENING.match(p)]
        for training, _ in books:
            for at in range(0, len(training), 3):
                chats.append(encode(conversation(training, at, openings, dice)))
        ends = np.cumsum([len(c) for c in chats])
        np.savez(work / "tokens-chat.npz", tokens=np.concatenate(chats), ends=ends)
    chat = np.load(work / "tokens-chat.npz")
    return tokenizer, np.load(work / "tokens-train.npy"), np.load(work / "tokens-held-out.npy"), (chat["tokens"], chat["ends"])


class Sequences:
    """An endless stream of batches. Text comes in shuffled windows, shifted anew every pass;
    a share of the sequences start with a conversation and go on with the next ones."""

    def __init__(self, text, chat, share, seed=1):
        self.text, (self.chat, ends), self.share = text, chat, share
        self.starts = np.concatenate([[0], ends[:-1]])
        self.dice = np.random.default_rng(seed)
        self.windows, self.length = [], 0

    def window(self, length):
        if not self.windows or self.length != length:
            shift = int(self.dice.integers(length))
            self.windows = list(self.dice.permutation(np.arange(shift, len(self.text) - length - 1, length)))
            self.length = length
        at = self.windows.pop()
        return self.text[at : at + length + 1]

    def batch(self, rows, length):
        out = np.empty((rows, length + 1), dtype=np.int64)
        for row in out:
            if self.dice.random() < self.share:
                at = min(int(self.dice.choice(self.starts)), len(self.chat) - length - 1)
                row[:] = self.chat[at : at + length + 1]
            else:
                row[:] = self.window(length)
        return torch.from_numpy(out)


def held_out_loss(model, tokens, length, limit=None):
    """Mean nats per token over the held-out text, in whole windows."""
    model.eval()
    count = (len(tokens) - 1) // length
    rows = torch.from_numpy(np.stack([tokens[i * length : i * length + length + 1] for i in range(count)]).astype(np.int64))
    rows = rows[:: max(1, count // limit)][:limit] if limit else rows
    step = 8
    rows = rows[: len(rows) // step * step]
    with torch.no_grad():
        mean = float(np.mean([model.loss(rows[i : i + step]).item() for i in range(0, len(rows), step)]))
    model.train()
    return mean


# ---------------------------------------------------------------- two processes, one gradient


class Crew:
    """Processes of one thread each that share the weights and take a step's pieces from one counter.
    On a machine whose cores are taken away at any moment this is several times faster than one process
    of several threads, which meet at a barrier after every operation. This process is the first worker."""

    def __init__(self, model, workers, pieces, tokens, compiled):
        context = mp.get_context("spawn")
        model.share_memory()
        self.model = model
        self.buffer = torch.zeros(pieces, tokens * 2, dtype=torch.int64).share_memory_()
        self.losses = torch.zeros(pieces).share_memory_()
        self.shape = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.next = context.Value("i", 0)
        self.begin, self.done = context.Semaphore(0), context.Semaphore(0)
        self.gradients = [[torch.zeros_like(p).share_memory_() for p in model.parameters()] for _ in range(workers)]
        shared = (model, self.buffer, self.losses, self.shape, self.next, self.begin, self.done)
        self.others = [context.Process(target=serve, args=(*shared, self.gradients[i], compiled, i), daemon=True) for i in range(1, workers)]
        for process in self.others:
            process.start()
        self.loss_of = ready(model, self.gradients[0], compiled)

    def gradient(self, rows):
        """The mean loss over `rows` [pieces, rows, length + 1]; its gradient is left in the parameters' `grad`."""
        pieces, count, length = rows.shape
        self.buffer[:, : count * length] = rows.flatten(1)
        self.shape[0], self.shape[1] = count, length
        self.next.value = 0
        for _ in self.others:
            self.begin.release()
        work(self.loss_of, self.buffer, self.losses, self.shape, self.next)
        for _ in self.others:
            self.done.acquire()
        for other in self.gradients[1:]:
            for p, g in zip(self.model.parameters(), other):
                p.grad.add_(g)
                g.zero_()
        return self.losses.mean().item()


def ready(model, gradients, compiled):
    torch.set_num_threads(1)
    model.train()
    for p, g in zip(model.parameters(), gradients):
        p.grad = g
    return torch.compile(model.loss, dynamic=False) if compiled else model.loss


def work(loss_of, buffer, losses, shape, next):
    pieces = len(losses)
    while True:
        with next.get_lock():
            piece = next.value
            next.value += 1
        if piece >= pieces:
            return
        count, length = shape.tolist()
        loss = loss_of(buffer[piece, : count * length].view(count, length).clone())
        (loss / pieces).backward()
        losses[piece] = loss.item()


def serve(model, buffer, losses, shape, next, begin, done, gradients, compiled, seed):
    torch.manual_seed(seed + int(time.time()))
    loss_of, parent = ready(model, gradients, compiled), os.getppid()
    while os.getppid() == parent:
        if begin.acquire(timeout=10):
            work(loss_of, buffer, losses, shape, next)
            done.release()


# ---------------------------------------------------------------- the run


def clock(text):
    """'12:40' today, or '+90' minutes from now, as seconds since the epoch."""
    if text.startswith("+"):
        return time.time() + 60 * float(text[1:])
    now, at = datetime.now(), datetime.strptime(text, "%H:%M")
    then = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
    return (then if then > now - timedelta(hours=6) else then + timedelta(days=1)).timestamp()


def arguments():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--work", type=Path, required=True, help="directory for everything the run makes")
    a.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data/stories.txt")
    a.add_argument("--decay-at", default="+90", help="when the learning rate starts to fall: HH:MM, or +minutes")
    a.add_argument("--stop-at", default="+120", help="when it reaches zero and the run ends")
    a.add_argument("--long-at", default="+0", help="when sequences grow from 256 tokens to the full context")
    a.add_argument("--batch", type=int, default=4096, help="tokens per step")
    a.add_argument("--piece", type=int, default=1024, help="tokens per forward and backward pass")
    a.add_argument("--warm-up", type=int, default=80, help="steps")
    a.add_argument("--muon-rate", type=float, default=0.02)
    a.add_argument("--adam-rate", type=float, default=4e-3)
    a.add_argument("--decay", type=float, default=0.1, help="weight decay of the blocks' matrices, times the rate")
    a.add_argument("--chat-share", type=float, default=0.08)
    a.add_argument("--workers", type=int, default=2, help="processes")
    a.add_argument("--steps", type=int, default=10**9)
    a.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    for name, value in asdict(Shape()).items():
        a.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return a.parse_args()


def main():
    a = arguments()
    torch.manual_seed(1)
    a.work.mkdir(parents=True, exist_ok=True)
    decay_at, stop_at, long_at = clock(a.decay_at), clock(a.stop_at), clock(a.long_at)
    tokenizer, text, held_out, chat = prepare(a.data, a.work, a.vocab)
    shape = Shape(**{name: getattr(a, name) for name in asdict(Shape())})
    model = Llama(shape)
    optimiser = Optimiser(model, a.muon_rate, a.adam_rate, a.decay)
    step, seen, seconds, recent, checkpoint = 0, 0, 0.0, None, a.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.restore(saved["optimiser"])
        step, seen, seconds, recent = saved["step"], saved["seen"], saved["seconds"], saved["train_loss"]
    sequences = Sequences(text, chat, a.chat_share, seed=1 + step)
    pieces = a.batch // a.piece
    crew = Crew(model, a.workers, pieces, a.piece, a.compile)
    log = open(a.work / "log.jsonl", "a", buffering=1)

    def note(**fields):
        line = json.dumps({"at": datetime.now().strftime("%H:%M:%S"), "step": step, "seen": seen, **fields})
        print(line, flush=True)
        log.write(line + "\n")

    def save(**extra):
        state = {"model": model.state_dict(), "optimiser": optimiser.state(), "shape": asdict(shape), "step": step,
                 "seen": seen, "seconds": seconds, "train_loss": recent, **extra}
        torch.save(state, checkpoint.with_suffix(".new"))
        os.replace(checkpoint.with_suffix(".new"), checkpoint)

    note(parameters=sum(p.numel() for p in model.parameters()), text=len(text), held_out=len(held_out), chat=len(chat[0]))
    validated = saved_at = noted = time.time()
    noted_seen = seen
    while step < a.steps:
        began = time.time()
        if began >= stop_at:
            break
        factor = min(1, (step + 1) / a.warm_up) * min(1, max(0.0, (stop_at - began) / (stop_at - decay_at)))
        length = shape.context if began >= long_at else 256
        total = crew.gradient(sequences.batch(a.batch // length, length).view(pieces, -1, length + 1))
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimiser.step(factor)
        model.zero_grad(set_to_none=False)
        step, seen = step + 1, seen + a.batch
        now = time.time()
        seconds += now - began
        recent = total if recent is None else 0.98 * recent + 0.02 * total
        if step % 10 == 0:
            note(loss=round(total, 4), mean=round(recent, 4), norm=round(norm, 3), factor=round(factor, 4), length=length,
                 rate=round((seen - noted_seen) / (now - noted)))
            noted, noted_seen = now, seen
        if now - validated > 300:
            note(held_out_loss=round(held_out_loss(model, held_out, shape.context, 64), 4))
            validated = time.time()
        if now - saved_at > 120:
            save()
            saved_at = now
    final = held_out_loss(model, held_out, shape.context)
    save(held_out_loss=final)
    note(held_out_loss=round(final, 4), finished=True)


if __name__ == "__main__":
    main()
