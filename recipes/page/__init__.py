"""One self-contained HTML page out of plain data: blocks, charts, pictures."""
