"""Small submission folders of our own making: one that holds, and what each test changes in it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKENS = 62_021_632
RATIO = 2.4359237


@dataclass
class Made:
    """A folder to write: three logs, a script and submission.json, consistent unless a test changes a part."""

    path: Path
    bpb: dict[int, float] = field(default_factory=lambda: {1: 1.10012345, 2: 1.10123456, 3: 1.10334567})
    ratio: float = RATIO
    tokens: int = TOKENS
    model: int = 15_900_000
    code: str = "import torch\nprint('training')\n"
    train_ms: int = 600_050
    eval_ms: int = 90_000
    settings: dict[str, str] = field(default_factory=lambda: {"matrix_lr": "0.04", "num_heads": "8"})
    declared: dict[str, Any] = field(default_factory=dict)
    readme: str = "# A small submission\n"

    def log(self, run: int, **changes: Any) -> str:
        """Return the log of a seed."""
        bpb = changes.get("bpb", self.bpb[run])
        loss = bpb * changes.get("ratio", self.ratio) * math.log(2)
        model, code = changes.get("model", self.model), len(self.code.encode())
        settings = {**self.settings, **changes.get("settings", {})}
        return "\n".join(
            [
                f"val_loader:shards pattern=./data/fineweb_val_*.bin tokens:{self.tokens}",
                "train_loader:dataset:fineweb10B_sp1024 train_shards:80",
                f"model_params:{changes.get('params', 17059912)}",
                " ".join(f"{k}:{v}" for k, v in settings.items()),
                f"seed:{changes.get('seed', run)}",
                "step:10000/20000 val_loss:2.1000 val_bpb:1.2500 train_time:500000ms step_avg:50.00ms",
                f"stopping_early: wallclock_cap train_time:{changes.get('train_ms', self.train_ms)}ms step:12000/20000",
                "Serialized model: 67224983 bytes",
                f"Code size: {code} bytes",
                f"Total submission size: {67224983 + code} bytes",
                f"Serialized model int8+zlib: {model} bytes",
                f"Total submission size int8+zlib: {model + code} bytes",
                f"final_int8_zlib_roundtrip val_loss:{loss:.4f} val_bpb:{bpb:.4f} eval_time:{self.eval_ms}ms",
                f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}",
                "",
            ]
        )

    def write(self, logs: dict[str, str] | None = None) -> Path:
        """Write the folder; returns its path."""
        self.path.mkdir(parents=True, exist_ok=True)
        mean = sum(self.bpb.values()) / len(self.bpb)
        values = {
            "name": "Small",
            "val_bpb": round(mean, 8),
            "bytes_total": self.model + len(self.code.encode()),
            "seeds": list(self.bpb),
            "seed_results": {str(s): {"val_bpb": v} for s, v in self.bpb.items()},
            **self.declared,
        }
        (self.path / "submission.json").write_text(json.dumps(values, indent=2))
        (self.path / "README.md").write_text(self.readme)
        (self.path / "train_gpt.py").write_text(self.code)
        for name, text in (logs or {f"train_seed{s}.log": self.log(s) for s in self.bpb}).items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return self.path
