from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "workflows" / "examples"
