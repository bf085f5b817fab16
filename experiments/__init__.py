"""What remembers: measurements as cached steps, and sweeps over them."""
