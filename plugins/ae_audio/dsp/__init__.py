"""Sound as numbers: files, spectra, pitch."""
