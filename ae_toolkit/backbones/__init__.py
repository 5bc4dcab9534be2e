"""Encoders and decoders, one family a file."""
