"""What a scan leaves: rows, tables, the HTML report and heat maps."""
