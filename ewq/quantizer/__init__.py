"""EWQ as a quantization method of transformers: importing this package registers it.

Then ``from_pretrained(..., quantization_config=EwqConfig(plan=...))`` works, and so does opening a
folder that ``ewq quantize`` or ``save_pretrained`` wrote.
"""

from __future__ import annotations

from ewq.quantizer.config import METHOD, EwqConfig
from ewq.quantizer.hf_quantizer import EwqHfQuantizer

__all__ = ["METHOD", "EwqConfig", "EwqHfQuantizer"]
