"""The music plugin: monophonic melodies from MIDI, blended, varied, sampled and heard."""
