"""EWQ as a quantization method of transformers: importing this package registers it."""

from ewq.quantizer.config import METHOD, EwqConfig
from ewq.quantizer.hf_quantizer import EwqHfQuantizer

__all__ = ["METHOD", "EwqConfig", "EwqHfQuantizer"]
