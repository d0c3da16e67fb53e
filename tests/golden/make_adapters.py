"""Makes `adapters/`: adapters of the embedded model, written by PEFT and by mlx-lm themselves.

    python tests/golden/make_adapters.py

The tests read them: what other tools wrote must load here, with the logits that those tools give.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

from qwen_local.embedded import sample_data_path, tiny_model_path

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
IDS = [5, 17, 200, 3, 44, 91, 120, 7]
"""Tokens whose last logits are stored beside each adapter."""


def make_peft(folder: Path) -> None:
    """PEFT's `save_pretrained` of a rank-2 adapter on three modules of the last two blocks."""
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "o_proj", "down_proj"],
        layers_to_transform=[2, 3],
        layers_pattern="layers",
    )
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    config_file = folder / "adapter_config.json"
    written = json.loads(config_file.read_text())
    written["base_model_name_or_path"] = "qwen-local/tiny"  # PEFT wrote the path of one machine
    config_file.write_text(json.dumps(written, indent=2) + "\n")
    (folder / "README.md").unlink()  # an empty form
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([IDS])).logits[0, -1]
    save_file({"logits": logits.clone()}, folder / "expected.safetensors")


def make_mlx(folder: Path) -> None:
    """`mlx_lm.lora`, twelve iterations on the sample data, its defaults but for size."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        rows = (sample_data_path() / "train.jsonl").read_text().splitlines()
        (data / "train.jsonl").write_text("\n".join(rows[:40]))
        (data / "valid.jsonl").write_text("\n".join(rows[40:48]))
        (data / "config.yaml").write_text(
            "lora_parameters: {rank: 2, scale: 10.0, dropout: 0.0, "
            "keys: [self_attn.q_proj, self_attn.v_proj]}\n"
        )
        command = [
            *(sys.executable, "-m", "mlx_lm", "lora", "--train"),
            *("--model", str(tiny_model_path()), "--data", scratch),
            *("--config", str(data / "config.yaml"), "--adapter-path", str(folder)),
            *("--num-layers", "3", "--batch-size", "4", "--iters", "12", "--learning-rate", "1e-3"),
            *("--save-every", "1000", "--val-batches", "1"),
        ]
        subprocess.run(command, check=True)
    config_file = folder / "adapter_config.json"
    written = json.loads(config_file.read_text())
    for key in ("model", "data", "config", "adapter_path"):  # paths of one machine
        written[key] = "qwen-local/tiny" if key == "model" else None
    config_file.write_text(json.dumps(written, indent=2) + "\n")
    write_mlx_logits(folder)


def write_mlx_logits(folder: Path) -> None:
    """What mlx-lm itself answers with its adapter."""
    import mlx.core as mx
    import mlx_lm.tuner.utils
    import mlx_lm.utils

    mx.set_default_device(mx.cpu)
    model, _ = mlx_lm.utils.load_model(tiny_model_path())
    model.set_dtype(mx.float32)
    mlx_lm.tuner.utils.load_adapters(model, str(folder))
    model.eval()
    logits = model(mx.array([IDS]))[0, -1].astype(mx.float32)
    mx.save_safetensors(str(folder / "expected.safetensors"), {"logits": logits})


if __name__ == "__main__":
    for name, make in (("peft", make_peft), ("mlx", make_mlx)):
        (ADAPTERS / name).mkdir(parents=True, exist_ok=True)
        make(ADAPTERS / name)
        for file in (ADAPTERS / name).iterdir():
            file.chmod(0o644)
