"""Ways through the code that a musician would take, and how good they are."""
