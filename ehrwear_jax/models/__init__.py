"""The multimodal model and the models it is compared with."""
