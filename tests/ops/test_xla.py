"""The blockwise implementation in plain XLA."""

from kernel_attention_suite import Suite


class TestXla(Suite):
    implementation = "xla"
    options = (("block_q", 16), ("block_k", 16))
