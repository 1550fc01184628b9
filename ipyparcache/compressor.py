"""The place where programs written for joblib look for codecs and their file objects."""

from __future__ import annotations

from ipyparcache.storage.compression import (
    BinaryGzipFile,
    BinaryZlibFile,
    CompressorWrapper,
    register_compressor,
)

__all__ = ["BinaryGzipFile", "BinaryZlibFile", "CompressorWrapper", "register_compressor"]
