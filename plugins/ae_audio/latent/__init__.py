"""Ways through the code that a listener would take, and how good they are."""
