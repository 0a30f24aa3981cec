"""The cost of one checkpoint of a full fine-tune: `checkpoint_cost` for all 26M parameters instead of an adapter.

python -m benchmarks.full_finetune [--rounds 5] [--json FILE]
"""

from benchmarks.checkpoint_cost import compare
from benchmarks.subject import base_model

if __name__ == "__main__":
    compare("Cost of one checkpoint, 26M-parameter Qwen2, full fine-tune", base_model, __doc__.splitlines()[0])
