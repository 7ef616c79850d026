"""What connects mpq_compile with other tools."""
