"""Training scripts of our own, written in the ways that published ones are, to be read and never run."""

from __future__ import annotations

import base64
import lzma

import brotli

HEAD = """
import math
import os
import torch
import torch.nn.functional as F
from torch import Tensor, nn

raise_if_run = open("/nonexistent/evalkit-must-not-run-this")


class Hyperparameters:
    vocab_size = int(os.environ.get("VOCAB_SIZE", 64))
    num_layers = int(os.environ.get("NUM_LAYERS", 4))
    model_dim = int(os.environ.get("MODEL_DIM", 32))
    num_heads = int(os.environ.get("NUM_HEADS", 4))
    num_kv_heads = int(os.environ.get("NUM_KV_HEADS", 2))
    mlp_mult = float(os.environ.get("MLP_MULT", 3.0))
    tie_embeddings = bool(int(os.environ.get("TIE_EMBEDDINGS", "1")))
    rope_base = float(os.environ.get("ROPE_BASE", 10000.0))
    rope_dims = int(os.environ.get("ROPE_DIMS", 4))
    logit_softcap = float(os.environ.get("LOGIT_SOFTCAP", 30.0))
    bigram_vocab_size = int(os.environ.get("BIGRAM_VOCAB_SIZE", 128))
    bigram_dim = int(os.environ.get("BIGRAM_DIM", 16))
    xsa_last_n = int(os.environ.get("XSA_LAST_N", 2))
    ln_scale = bool(int(os.environ.get("LN_SCALE", "1")))
    train_seq_len = int(os.environ.get("TRAIN_SEQ_LEN", 256))


class RMSNorm(nn.Module):
    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),))


class Dense(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Rotary(nn.Module):
    def __init__(self, dim, base=10000.0, train_seq_len=1024, rope_dims=0):
        super().__init__()
        self.base, self.train_seq_len = base, train_seq_len
        self.rope_dims = rope_dims if rope_dims > 0 else dim
        steps = torch.arange(0, self.rope_dims, 2, dtype=torch.float32)
        self.register_buffer("inv_freq", 1.0 / base ** (steps / self.rope_dims), persistent=False)
        self._cos_cached = None

    def forward(self, length, device, dtype):
        if self._cos_cached is None or self._cos_cached.device != device:
            rd = self.rope_dims
            if length > self.train_seq_len:
                stretched = self.base * (length / self.train_seq_len) ** (rd / (rd - 2))
                inv_freq = 1.0 / stretched ** (torch.arange(0, rd, 2, dtype=torch.float32, device=device) / rd)
            else:
                inv_freq = self.inv_freq.to(device)
            angles = torch.outer(torch.arange(length, device=device, dtype=inv_freq.dtype), inv_freq)
            self._cos_cached, self._sin_cached = angles.cos()[None, :, None], angles.sin()[None, :, None]
        return self._cos_cached.to(dtype=dtype), self._sin_cached.to(dtype=dtype)


def turn(x, cos, sin, rd):
    if 0 < rd < x.size(-1):
        return torch.cat((turn(x[..., :rd], cos, sin, 0), x[..., rd:]), dim=-1)
    half = x.size(-1) // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.h, self.head_dim = h, h.model_dim // h.num_heads
        kv = h.num_kv_heads * self.head_dim
        self.c_q = Dense(h.model_dim, h.model_dim, bias=False)
        self.c_k = Dense(h.model_dim, kv, bias=False)
        self.c_v = Dense(h.model_dim, kv, bias=False)
        self.proj = Dense(h.model_dim, h.model_dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((h.num_heads,), 1.5))
        self.rotary = Rotary(self.head_dim, h.rope_base, h.train_seq_len, h.rope_dims)
        self.use_xsa = False

    def forward(self, x):
        b, t, d = x.shape
        h = self.h
        q = self.c_q(x).reshape(b, t, h.num_heads, self.head_dim)
        k = self.c_k(x).reshape(b, t, h.num_kv_heads, self.head_dim)
        v = self.c_v(x).reshape(b, t, h.num_kv_heads, self.head_dim)
        q, k = F.rms_norm(q, (q.size(-1),)), F.rms_norm(k, (k.size(-1),))
        cos, sin = self.rotary(t, x.device, q.dtype)
        q = turn(q, cos, sin, h.rope_dims) * self.q_gain[None, None, :, None]
        k = turn(k, cos, sin, h.rope_dims)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        ).transpose(1, 2)
        if self.use_xsa:
            unit = F.normalize(v, dim=-1).unsqueeze(-2)
            grouped = y.reshape(b, t, h.num_kv_heads, -1, self.head_dim)
            y = (grouped - (grouped * unit).sum(dim=-1, keepdim=True) * unit).reshape(b, t, h.num_heads, self.head_dim)
        return self.proj(y.reshape(b, t, d))


class MLP(nn.Module):
    def __init__(self, h):
        super().__init__()
        hidden = int(h.mlp_mult * h.model_dim)
        self.fc, self.proj = Dense(h.model_dim, hidden, bias=False), Dense(hidden, h.model_dim, bias=False)

    def forward(self, x):
        return self.proj(ACTIVATION.square())


class SmearGate(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        g = torch.sigmoid(self.gate.to(x.dtype))
        return (1 - g) * x + g * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


class Bigram(nn.Module):
    def __init__(self, buckets, width, dim):
        super().__init__()
        self.buckets = buckets
        self.embed, self.proj = nn.Embedding(buckets, width), Dense(width, dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, ids):
        t = ids.to(torch.int32)
        out = torch.empty_like(t)
        out[..., 0] = self.buckets - 1
        out[..., 1:] = torch.bitwise_xor(36313 * t[..., 1:], 27191 * t[..., :-1]) % (self.buckets - 1)
        return self.proj(self.embed(out.long())) * self.scale


class Block(nn.Module):
    def __init__(self, h, i):
        super().__init__()
        self.attn_norm, self.mlp_norm, self.attn, self.mlp = RMSNorm(), RMSNorm(), Attention(h), MLP(h)
        self.attn_scale = nn.Parameter(torch.ones(h.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(h.model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(h.model_dim), torch.zeros(h.model_dim))))
        self.ln_scale_factor = 1.0 / math.sqrt(i + 1) if h.ln_scale else 1.0
        self.parallel = False

    def forward(self, x, x0):
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        a = self.attn_scale * self.attn(self.attn_norm(x) * self.ln_scale_factor)
        if self.parallel:
            return x + a + self.mlp_scale * self.mlp(self.mlp_norm(x) * self.ln_scale_factor)
        x = x + a
        return x + self.mlp_scale * self.mlp(self.mlp_norm(x) * self.ln_scale_factor)

"""

PLAIN = (
    HEAD
    + """
class GPT(nn.Module):
    def __init__(self, h):
        super().__init__()
        if h.logit_softcap <= 0:
            raise ValueError(h.logit_softcap)
        self.logit_softcap = h.logit_softcap
        self.tok_emb = nn.Embedding(h.vocab_size, h.model_dim)
        self.bigram = Bigram(h.bigram_vocab_size, h.bigram_dim, h.model_dim) if h.bigram_vocab_size > 0 else None
        self.smear = SmearGate(h.model_dim)
        self.encoder = h.num_layers // 2
        self.skip_weights = nn.Parameter(torch.ones(min(self.encoder, h.num_layers - self.encoder), h.model_dim))
        self.blocks = nn.ModuleList([Block(h, i) for i in range(h.num_layers)])
        for i in range(max(0, h.num_layers - h.xsa_last_n), h.num_layers):
            self.blocks[i].attn.use_xsa = True

    def forward(self, ids, targets):
        x = self.tok_emb(ids)
        if self.bigram is not None:
            x = x + self.bigram(ids)
        x = x0 = self.smear(F.rms_norm(x, (x.size(-1),)))
        skips = []
        for i, block in enumerate(self.blocks):
            if i < self.encoder:
                x = block(x, x0)
                skips.append(x)
                continue
            if skips:
                x = x + self.skip_weights[i - self.encoder].to(x.dtype)[None, None, :] * skips.pop()
            x = block(x, x0)
        logits = F.linear(F.rms_norm(x, (x.size(-1),)), self.tok_emb.weight)
        logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        return F.cross_entropy(logits.reshape(-1, logits.size(-1)).float(), targets.reshape(-1))


def main():
    args = Hyperparameters()
    model = GPT(args).to("cuda").bfloat16()


if __name__ == "__main__":
    main()
"""
)
"""A script of the first kind: smear gate, hashed pairs, exclusive self-attention, plain skips."""

LOOPED = (
    HEAD.replace("    ln_scale =", '    num_loops = int(os.environ.get("NUM_LOOPS", 2))\n    ln_scale =')
    + """
class GPT(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.cap, self.tok_emb = h.logit_softcap, nn.Embedding(h.vocab_size, h.model_dim)
        self.blocks = nn.ModuleList([Block(h, i) for i in range(h.num_layers)])
        for block in self.blocks[-1:]:
            block.parallel = True
        for i in range(h.num_layers - h.xsa_last_n, h.num_layers):
            self.blocks[i].attn.use_xsa = True
        self.looping_active = False
        order = [0] + [1, 2] * (h.num_loops + 1) + list(range(3, h.num_layers))
        half = len(order) // 2
        self.enc, self.dec = order[:half], order[half:]
        rows = min(len(self.enc), len(self.dec))
        self.skip_weights = nn.Parameter(torch.ones(rows, h.model_dim))
        self.skip_gates = nn.Parameter(torch.zeros(rows, h.model_dim))

    def forward_logits(self, ids):
        x = self.tok_emb(ids)
        x = x0 = F.rms_norm(x, (x.size(-1),))
        skips = []
        n = len(self.blocks)
        for i in self.enc if self.looping_active else range(n // 2):
            x = self.blocks[i](x, x0)
            skips.append(x)
        for r, i in enumerate(self.dec if self.looping_active else range(n // 2, n)):
            if r < self.skip_weights.shape[0] and skips:
                g = torch.sigmoid(self.skip_gates[r].to(x.dtype))[None, None, :]
                x = torch.lerp(self.skip_weights[r].to(x.dtype)[None, None, :] * skips.pop(), x, g)
            x = self.blocks[i](x, x0)
        logits = F.linear(F.rms_norm(x, (x.size(-1),)), self.tok_emb.weight)
        return self.cap * torch.tanh(logits / self.cap)


def evaluate(h):
    eval_model = GPT(h)
    if h.num_loops > 0:
        eval_model.looping_active = True
"""
)
"""A script of the later kind: repeated blocks, gated skips, a joint block at the end."""


def plain(activation: str = "torch.relu(self.fc(x))") -> str:
    """Return the first script with an activation."""
    return PLAIN.replace("ACTIVATION", activation)


def looped() -> str:
    """Return the second script."""
    return LOOPED.replace("ACTIVATION", "F.leaky_relu(self.fc(x), negative_slope=0.5)")


def wrapped(script: str, form: str = "lzma") -> str:
    """Return a script as submissions ship it: compressed, in base 85, executed from a string."""
    if form == "brotli":
        packed = base64.b85encode(brotli.compress(script.encode())).decode()
        return f"import brotli,base64\nexec(compile(brotli.decompress(base64.b85decode({packed!r})),'t','exec'))\n"
    filters = [{"id": lzma.FILTER_LZMA2}]
    packed = base64.b85encode(lzma.compress(script.encode(), format=lzma.FORMAT_RAW, filters=filters)).decode()
    return (
        "import lzma as L,base64 as B\n"
        f'exec(L.decompress(B.b85decode("{packed}"),format=L.FORMAT_RAW,filters=[{{"id":L.FILTER_LZMA2}}]))\n'
    )
