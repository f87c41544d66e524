"""What a worker is made of. Each part knows storage and models; none knows `DurableQ`, the worker or a database."""
