"""Single notes and short sounds, as a plugin of ae-toolkit that uses its public names only."""
