"""`ae image lesson`: what a lesson on autoencoders claims, run and measured, as one page."""
