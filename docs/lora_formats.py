"""Write the tables of LoRA formats into docs/loras.md.

Usage: python docs/lora_formats.py
"""

import re
import sys
import tempfile
from pathlib import Path

from artmancer.errors import ArtMancerError
from artmancer.qwen import lora_files

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import lora_formats, tiny_qwen
from support.paths import ROOT

PAGE = ROOT / "docs" / "loras.md"


def main() -> None:
    """Refuse every format that is refused, and write the tables."""
    from diffusers import QwenImageTransformer2DModel

    with tempfile.TemporaryDirectory() as folder:
        base = tiny_qwen.save_base(Path(folder) / "base")
        transformer = QwenImageTransformer2DModel.from_pretrained(base, subfolder="transformer")
        messages = {}
        for name, tensors in lora_formats.REFUSED.items():
            path = lora_formats.LoraFile(tensors).save(Path(folder) / "lora.safetensors")
            try:
                lora_files.read(path, transformer)
            except ArtMancerError as error:
                messages[name] = str(error)
    text = PAGE.read_text("utf-8")
    start, end = "<!-- tables -->\n", "<!-- end of tables -->"
    table = lora_formats.table(messages)
    text = re.sub(f"(?<={start}).*(?={end})", lambda _: f"\n{table}\n", text, flags=re.DOTALL)
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
