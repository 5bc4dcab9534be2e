"""Single notes and short sounds, as a plugin of ae-toolkit that uses its public names only."""

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")  #: of sound files, read and written
