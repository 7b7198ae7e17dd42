"""The TPU kernels, by Pallas' interpreter; test_mosaic_tpu_compile.py compiles them for real chips."""

from kernel_attention_suite import Suite


class TestMosaicTpu(Suite):
    implementation = "mosaic_tpu"
    options = (("block_q", 16), ("block_k", 16), ("interpret", True))
    examples = 3
