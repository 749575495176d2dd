"""What is kept of a sweep, and how: locations, atomic writes, leases, records, checkpoints."""
