"""Encoders and decoders: dense, convolutional, residual, recurrent and attentive."""
