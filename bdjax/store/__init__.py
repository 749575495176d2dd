"""What is kept of a sweep and where: locations, atomic writes, leases, records, checkpoints."""
