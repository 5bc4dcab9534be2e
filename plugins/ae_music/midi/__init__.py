"""MIDI files and notation: read, made sound, understood, written."""
