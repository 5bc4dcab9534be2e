"""A trained model in use: items in, items out, what can be measured of it, where it is found."""
