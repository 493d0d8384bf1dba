"""What a worker leaves behind: the fixed-layout record and the shared-memory ring that carries it."""
